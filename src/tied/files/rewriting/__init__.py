"""Checkpoints written anew: shrunk, expanded, repaired.

Owns: new files, whole or not at all. Must not change its input, or know models.
"""
