"""An autoencoder of any depth whose decoder mirrors its encoder.

Owns: `TiedAutoencoder`. Must not implement tying: that is `tied.tie`. Read next: `tied.study.recipes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from tied.binding import tie
from tied.errors import AddressError, KindError, ShapeError, during, nearest
from tied.nn.init import draw
from tied.nn.input_checks import check_dtype, explain_bad_input, is_size

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "linear": nn.Identity,
    "relu": nn.ReLU,
    "selu": nn.SELU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}


class TiedAutoencoder(nn.Module):
    """An autoencoder whose decoder layers have the encoder's weights, transposed, in reverse order.

    Law: for `n` layers, `decoder layer l .weight == encoder layer (n - 1 - l) .weight.T`, exact.

    Every layer is followed by the activation, except the last one of the decoder, which is linear. Biases
    are never tied. Weights start from Xavier's uniform distribution, whose scale is the same for a matrix
    and its transpose, so that neither direction starts too small.

    Shapes:
        images: `(..., sizes[0])`; codes: `(..., sizes[-1])`.

    Args:
        sizes: Width of the input, of each hidden layer, and of the code; at least two.
        activation: A name (`"relu"`, `"tanh"`, `"linear"`, ...) or a callable that makes a module.
        tie: `False` gives the untied twin: same interface, decoder weights of its own.
        bias: Whether the layers have biases.
        device: Where to create the parameters.
        dtype: Their type.

    Raises:
        ShapeError: `sizes` has fewer than two entries, or one that is not a positive integer.
        AddressError: `activation` is no known name.
        KindError: `activation` makes no module.
        DtypeError: `dtype` is not a real floating point type.

    Example:
        >>> model = TiedAutoencoder((64, 32, 16), "tanh")
        >>> model.encode(torch.zeros(5, 64)).shape, model(torch.zeros(5, 64)).shape
        (torch.Size([5, 16]), torch.Size([5, 64]))
        >>> sorted(model.state_dict())[:3]
        ['decoder.0.bias', 'decoder.2.bias', 'encoder.0.bias']

    Source:
        Vincent et al. 2010, Stacked Denoising Autoencoders, JMLR 11, section 4 (tied weights W' = Wᵀ).
    """

    def __init__(
        self,
        sizes: Sequence[int],
        activation: str | Callable[[], nn.Module] = "relu",
        *,
        tie: bool = True,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        with during(f"TiedAutoencoder({sizes!r})"):
            self.sizes = _checked(sizes)
            make = _activation(activation)
            check_dtype(dtype)
        layer = partial(nn.Linear, bias=bias, device=device, dtype=dtype)
        encoder = [layer(wide, narrow) for wide, narrow in pairwise(self.sizes)]
        decoder = [layer(narrow, wide) for narrow, wide in pairwise(self.sizes[::-1])]
        self.encoder = _stack(encoder, make, last=True)
        self.decoder = _stack(decoder, make, last=False)
        if tie:
            self._tie()
        self.reset_parameters()

    def _tie(self) -> None:
        depth = len(self.sizes) - 1
        for layer in range(depth):
            tie(self, f"decoder.{2 * layer}.weight", f"encoder.{2 * (depth - 1 - layer)}.weight.T")

    def reset_parameters(self) -> None:
        """Draw all weights (Xavier uniform) and biases (uniform within `±1/sqrt(fan_in)`) anew."""
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.xavier_uniform_(parameter)
        for layer in (*self.encoder, *self.decoder):
            if isinstance(layer, nn.Linear):
                draw(layer.bias, layer.in_features)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Map images `(..., sizes[0])` to codes `(..., sizes[-1])`."""
        return self._through(self.encoder, images, self.sizes[0])

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Map codes `(..., sizes[-1])` to images `(..., sizes[0])`."""
        return self._through(self.decoder, codes, self.sizes[-1])

    def _through(self, layers: nn.Module, input: torch.Tensor, size: int) -> torch.Tensor:
        try:
            return layers(input)
        except (RuntimeError, TypeError):
            explain_bad_input(self, input, next(self.parameters()), size)
            raise

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Reconstruct images `(..., sizes[0])`."""
        return self.decode(self.encode(images))


def _stack(layers: list[nn.Linear], make: Callable[[], nn.Module], *, last: bool) -> nn.Sequential:
    """Put an activation after each layer; after the last one only if `last`."""
    stacked = [module for layer in layers for module in (layer, make())]
    return nn.Sequential(*(stacked if last else stacked[:-1]))


def _checked(sizes: object) -> tuple[int, ...]:
    many: tuple[Any, ...] = tuple(sizes) if isinstance(sizes, Iterable) else ()
    if len(many) < 2 or not all(is_size(size) for size in many):
        raise ShapeError(
            "The sizes describe no autoencoder.",
            found=f"sizes={many or sizes!r}",
            expected="at least two positive integers, input first and code last",
            fix="TiedAutoencoder((784, 256, 32))",
        )
    return many


def _activation(activation: str | Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    if not isinstance(activation, str):
        return _making(activation)
    if activation not in ACTIVATIONS:
        raise AddressError(
            f"'{activation}' is not the name of an activation.",
            found=f"activation='{activation}'",
            expected=", ".join(ACTIVATIONS),
            fix=f"did you mean {nearest(activation, ACTIVATIONS) or 'relu'}? Or pass a class, as nn.Mish",
        )
    return ACTIVATIONS[activation]


def _making(activation: Callable[[], Any]) -> Callable[[], nn.Module]:
    """Check that calling `activation` gives a module; `torch.relu` or an instance would not."""
    try:
        made = activation()
    except TypeError:
        made = None
    if not isinstance(made, nn.Module):
        raise KindError(
            "The activation makes no module.",
            found=f"activation={getattr(activation, '__name__', type(activation).__name__)}",
            expected="a name, or a callable that returns an nn.Module when called without arguments",
            fix="activation='relu' or activation=nn.ReLU",
        )
    return activation
