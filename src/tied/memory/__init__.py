"""Which tensors lie over the same bytes, and which view of one another they are.

Owns: byte intervals, and writing a view as a transform. Must not read values, know modules, or keep anything.
"""

IDENTITY = "identity"
"""What a tensor is of another one that has the same memory, sizes and strides."""
OVERLAP = "overlap"
"""What a tensor is of another one if no transform says it."""
