"""Sharded tensors in files: gathered before they are written, spread after they are read.

Owns: the way between a `DTensor` and a plain tensor, as far as files need it. Loaded by `files` when it meets a
`DTensor`, and never before. Read next: `gather.py`, for what targets read.
"""

from __future__ import annotations

from torch import Tensor, distributed
from torch.distributed.tensor import DTensor, distribute_tensor


def gathered(tensor: Tensor) -> Tensor:
    """Return a tensor whole, the same on every process; all of them have to call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def spread(tensor: Tensor, like: Tensor) -> Tensor:
    """Return the part of a tensor that this process holds, sharded as `like`; all processes have to call.

    The first process sends what it has read, so that all hold parts of one value.
    """
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)


def is_first() -> bool:
    """Tell whether this process is the one of all that writes."""
    return not distributed.is_initialized() or distributed.get_rank() == 0
