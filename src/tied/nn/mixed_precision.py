"""Which dtype a computation of our own takes and gives, where `F.linear` would know by itself.

Owns: half precision, and `torch.autocast`. Must not know any layer. Read next: `structured/structured_linear.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def wide(values: Tensor) -> Tensor:
    """Return values in a dtype that Fourier transforms know, and in which many of them can be added up."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """Return the dtype in which autocast computes linear layers where `tensor` lives; None where it is off."""
    kind = tensor.device.type
    on = kind != "meta" and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if on else None


def is_cast(input: Tensor, numbers: Tensor) -> bool:
    """Tell whether autocast brings the two to one dtype, as it does for `F.linear`: never from or to float64."""
    narrow = all(each.is_floating_point() and each.dtype != torch.float64 for each in (input, numbers))
    return narrow and autocast_dtype(input) is not None


def lowered(output: Tensor) -> Tensor:
    """Give an output the dtype that `F.linear` would give it: autocast's, unless it is float64."""
    dtype = autocast_dtype(output)
    return output if dtype is None or output.dtype == torch.float64 else output.to(dtype)
