"""Which tensors lie over the same bytes, and which view of one another they are.

Owns: byte intervals, and writing a view as a transform. Must not read values, know modules, or keep anything.
"""
