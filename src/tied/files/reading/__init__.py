"""Checkpoints as they lie on the disk: every format, opened without running what is in it.

Owns: headers, pickles, shards, folders, ledgers of files. Must not compare tensors, write, or know models.
"""
