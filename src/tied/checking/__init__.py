"""The eyes: what a model shares, read off its memory.

Owns: looking at live models, and `tied.check`. Must not change anything, nor import what changes models.
"""
