"""A linear layer that computes with another module's weight, transposed.

Owns: `TiedLinear`. Must not keep a tensor of the source: the binding reads it late.
Read next: `autoencoder.py`.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from tied.binding import bind
from tied.errors import KindError, ShapeError, during
from tied.nn.init import draw
from tied.nn.input_checks import check_device, check_trainable, explain_bad_input


class TiedLinear(nn.Linear):
    """A linear layer whose weight is the transposed weight of `encoder`, now and after every change.

    Law: `layer(x) == F.linear(x, encoder.weight.T, layer.bias)`, exact.

    The layer owns its bias only. `encoder` is not a submodule of it: register it where it belongs, in
    your model, so that its weight is counted, stored and stepped once. The layer follows whatever becomes
    of that module's weight, but not another module put in its place: for that, declare the tie on the whole
    model with `tied.tie`, which follows the address.

    Shapes:
        encoder.weight: `(out, in)`, of an `nn.Linear`, an `nn.Embedding` or anything with such a weight.
        input: `(..., out)`; output: `(..., in)`.
        bias: `(in,)`, uniform within `±1/sqrt(out)`: the fan-in of the transposed matrix.

    Args:
        encoder: The module that owns the weight.
        bias: Whether to add a bias of its own.
        device: Of the bias; that of `encoder.weight` where not given.
        dtype: Of the bias; that of `encoder.weight` where not given.

    Raises:
        KindError: `encoder` has no tensor called `weight`, or one without a shape yet.
        ShapeError: `encoder.weight` is not a matrix.
        DtypeError: it holds integers.
        DeviceError: an input lives on another device than the weight.

    Example:
        >>> encoder = nn.Linear(784, 256)
        >>> decoder = TiedLinear(encoder)
        >>> decoder.weight.shape, sum(p.numel() for p in decoder.parameters())
        (torch.Size([784, 256]), 784)
    """

    def __init__(
        self,
        encoder: nn.Module,
        bias: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        with during(f"TiedLinear({type(encoder).__name__})"):
            matrix = _matrix_of(encoder)
        nn.Module.__init__(self)
        self.in_features, self.out_features = matrix.shape
        own = torch.empty(self.out_features, device=device or matrix.device, dtype=dtype or matrix.dtype)
        self.register_parameter("bias", nn.Parameter(own) if bias else None)
        self.reset_parameters()
        bind(self, "weight", "encoder.weight.T", {"encoder": encoder})

    def reset_parameters(self) -> None:
        """Draw a new bias. The weight belongs to the encoder, which resets it."""
        draw(self.bias, self.in_features)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map `(..., out)` of the encoder back to `(..., in)`."""
        weight = self.weight
        check_device(self, input, weight)
        try:
            return F.linear(input, weight, self.bias)
        except RuntimeError:
            explain_bad_input(self, input, weight, self.in_features)
            raise


def _matrix_of(encoder: nn.Module) -> torch.Tensor:
    weight = getattr(encoder, "weight", None)
    if not isinstance(weight, torch.Tensor):
        raise KindError(
            "The encoder has no tensor called 'weight'.",
            found=f"{type(encoder).__name__}.weight is {type(weight).__name__}",
            expected="a module with a weight of shape (out, in), such as nn.Linear",
            fix="pass the layer itself: TiedLinear(model.encoder)",
        )
    if check_trainable(weight).dim() != 2:
        raise ShapeError(
            "The encoder's weight is not a matrix.",
            found=f"{type(encoder).__name__}.weight of shape {tuple(weight.shape)}",
            expected="a weight of shape (out, in)",
            fix="for other shapes declare the tie yourself: tied.tie(model, target, source)",
        )
    return weight
