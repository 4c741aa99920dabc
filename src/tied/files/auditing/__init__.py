"""What a checkpoint holds twice, promises and lacks; found by reading every byte once.

Owns: duplicates, fused rows, fingerprints, and the report. Must not write, or know models.
"""
