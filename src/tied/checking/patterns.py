"""Values: whether they can be read, whether two tensors hold the same, and what says nothing if it is equal.

Owns: constants and other patterns that initialization makes again and again. Read next: `copies.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from tied.checking.fingerprints import wide


def is_readable(tensor: Tensor) -> bool:
    """Tell whether the values of a tensor are here, all of them: there are none on meta, and a shard is not all."""
    return not (is_lazy(tensor) or tensor.is_meta or hasattr(tensor, "fake_mode") or hasattr(tensor, "_local_tensor"))


def equal_values(one: Tensor, other: Tensor) -> bool | None:
    """Tell whether two tensors are equal; None where these cannot be read or compared."""
    if not is_readable(one) or not is_readable(other):
        return None
    try:
        return torch.equal(one.detach().cpu(), other.detach().cpu())
    except (RuntimeError, NotImplementedError, TypeError):  # kinds of tensors that torch does not compare
        return None


def is_pattern(tensor: Tensor) -> bool:
    """Tell whether a tensor is one that initialization makes again and again, so that equality says nothing.

    Two values at most (constants, identities, masks), one row or one column repeated, a ramp, a table of sines.
    """
    tensor = wide(tensor.detach())
    first = tensor.flatten()[0]
    others = tensor[tensor != first]
    if not others.numel() or bool((others == others[0]).all()):
        return True
    if tensor.dim() == 1:
        steps = tensor.diff()
        return bool((steps >= 0).all() or (steps <= 0).all())
    same_rows, same_columns = bool((tensor == tensor[:1]).all()), bool((tensor == tensor[..., :1]).all())
    return same_rows or same_columns or _is_sinusoidal(tensor)


def _is_sinusoidal(tensor: Tensor) -> bool:
    """Tell whether every row holds as many sines as cosines of the same angles; rows of padding are zero."""
    if tensor.dim() != 2 or float(tensor.abs().max()) > 1:
        return False
    squares = tensor.double().square().sum(1)
    return bool(((squares - tensor.shape[1] / 2).abs() < 1e-2)[squares > 0].all())
