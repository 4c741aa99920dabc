"""A pair of linear layers, one the transpose of the other, over one Parameter from outside.

Owns: `mirror`. Must not implement tying: that is `TiedLinear`. Read next: `linear.py`.
"""

from __future__ import annotations

import torch
from torch import nn

from tied.errors import KindError, ShapeError, during
from tied.nn.init import draw
from tied.nn.input_checks import check_trainable
from tied.nn.linear import TiedLinear


def mirror(weight: nn.Parameter, bias: bool = True) -> tuple[nn.Linear, TiedLinear]:
    """Make two linear layers over one Parameter: there, and back with the transpose.

    Law: `there(x) == F.linear(x, weight, there.bias)`, `back(y) == F.linear(y, weight.T, back.bias)`, exact.

    The first layer owns the Parameter: register it nowhere else, or plain torch will cut the two apart
    when it loads with `assign=True`. The second one reads it from the first. The values of `weight` are
    kept as they are; each layer has a bias of its own, drawn as `nn.Linear` does.

    Args:
        weight: Of shape `(out, in)`.
        bias: Whether the layers have biases.

    Returns:
        `there`, from `in` to `out`, and `back`, from `out` to `in`.

    Raises:
        KindError: `weight` is not an `nn.Parameter`.
        ShapeError: it is not a matrix.
        DtypeError: it holds integers.

    Example:
        >>> there, back = mirror(nn.Parameter(torch.eye(4)[:3]))
        >>> back(there(torch.zeros(2, 4))).shape
        torch.Size([2, 4])
        >>> back.weight.data_ptr() == there.weight.data_ptr()
        True

    Source:
        Hinton & Salakhutdinov 2006, Science 313 (an autoencoder that starts as a machine read both ways).
    """
    with during("mirror(weight)"):
        if not isinstance(weight, nn.Parameter):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise KindError(
                "The weight is not a Parameter, so no layer could own it.",
                found=type(weight).__name__,
                expected="an nn.Parameter of shape (out, in)",
                fix="mirror(nn.Parameter(tensor)); for the weight of a layer that exists: TiedLinear(layer)",
            )
        if check_trainable(weight).dim() != 2:
            raise ShapeError(
                "The weight is not a matrix.",
                found=f"a Parameter of shape {tuple(weight.shape)}",
                expected="shape (out, in)",
                fix="weight.flatten(1) before it becomes a Parameter",
            )
    rows, columns = weight.shape
    there = nn.Linear(columns, rows, bias=False, device="meta")
    there.weight = weight
    if bias:
        there.bias = nn.Parameter(torch.empty(rows, device=weight.device, dtype=weight.dtype))
        draw(there.bias, columns)
    return there, TiedLinear(there, bias)
