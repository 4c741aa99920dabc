"""The one-parameter autoencoder, written out by hand: what every tie is compared with.

Owns: the formula, its gradient per use, and one optimizer step. Must not use `tied`: it is the oracle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn

PIXELS = 64
HIDDEN = 16
LEARNING_RATE = 0.01
WEIGHT_DECAY = 0.1
CLIP_NORM = 0.02
"""Small enough that clipping acts in every one of the compared steps (a test holds this)."""


def mean_squared_error(output: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Average `(output - images)²` over pixels and images; a scalar in squared brightness (0..1)."""
    return (output - images).square().mean()


def optimizer_for(parameters: Iterable[torch.Tensor]) -> torch.optim.AdamW:
    """Build the optimizer of the comparison: AdamW with weight decay."""
    return torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)


def clipped_step(optimizer: torch.optim.Optimizer, loss: Callable[[], torch.Tensor], most: float = CLIP_NORM) -> float:
    """Take one step with the gradient's norm clipped to `most`; returns the norm before clipping."""
    optimizer.zero_grad()
    loss().backward()
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = nn.utils.clip_grad_norm_(held, most)
    optimizer.step()
    return float(norm)


@dataclass(frozen=True)
class Parts:
    """What a recipe's model is made of, whatever its modules are called.

    Shapes:
        weight: `(16, 64)`; encoder_bias: `(16,)`; decoder_weight: `(64, 16)`; decoder_bias: `(64,)`.
    """

    weight: torch.Tensor
    encoder_bias: torch.Tensor
    decoder_bias: torch.Tensor
    decoder_weight: torch.Tensor

    def spread(self) -> float:
        """Return the largest absolute difference between the decoder's weight and `weight.T`."""
        return float((self.decoder_weight - self.weight.t()).abs().max())

    def largest_difference(self, other: Parts) -> float:
        """Return the largest absolute difference over all four tensors."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return max(float((mine - theirs).abs().max()) for mine, theirs in pairs)


def parameter_of_shape(model: nn.Module, *shape: int) -> nn.Parameter:
    """Return the first parameter of that shape; the four shapes of the autoencoder all differ."""
    return next(parameter for parameter in model.parameters() if parameter.shape == shape)


@torch.no_grad()
def effective_decoder_weight(model: nn.Module) -> torch.Tensor:
    """Measure the matrix that `model.decode` really multiplies by: `(64, 16)`, exact.

    Decodes the unit vectors with the bias at zero, so it needs no attribute of that name.
    """
    bias = parameter_of_shape(model, PIXELS)
    kept = bias.detach().clone()
    bias.zero_()
    rows = model.decode(torch.eye(HIDDEN, dtype=bias.dtype))  # pyright: ignore[reportCallIssue]
    bias.copy_(kept)
    return rows.t().clone()


def parts(model: nn.Module) -> Parts:
    """Take a model apart: three of its parameters and the measured decoder weight, as copies."""
    owned = [parameter_of_shape(model, *shape) for shape in [(HIDDEN, PIXELS), (HIDDEN,), (PIXELS,)]]
    weight, encoder_bias, decoder_bias = (parameter.detach().clone() for parameter in owned)
    return Parts(weight, encoder_bias, decoder_bias, effective_decoder_weight(model))


class Reference:
    """`(tanh(x Wᵀ + b) W + c)` in float64 with three leaf tensors: W `(16, 64)`, b `(16,)`, c `(64,)`."""

    def __init__(self, values: Parts) -> None:
        """Start from the values of a model."""
        self.weight = values.weight.double().requires_grad_()
        self.encoder_bias = values.encoder_bias.double().requires_grad_()
        self.decoder_bias = values.decoder_bias.double().requires_grad_()
        self.optimizer = optimizer_for([self.weight, self.encoder_bias, self.decoder_bias])

    def loss(self, images: torch.Tensor) -> torch.Tensor:
        """Compute the reconstruction error of images `(batch, 64)`."""
        codes = torch.tanh(images @ self.weight.T + self.encoder_bias)
        return mean_squared_error(codes @ self.weight + self.decoder_bias, images)

    def gradient(self, images: torch.Tensor) -> torch.Tensor:
        """Return the gradient for W `(16, 64)`, the sum over its two uses."""
        return torch.autograd.grad(self.loss(images), self.weight)[0]

    def step(self, images: torch.Tensor) -> float:
        """Train on one batch; returns the gradient norm before clipping."""
        return clipped_step(self.optimizer, lambda: self.loss(images))

    def parts(self) -> Parts:
        """Return today's values."""
        leaves = (self.weight, self.encoder_bias, self.decoder_bias)
        weight, encoder_bias, decoder_bias = (leaf.detach().clone() for leaf in leaves)
        return Parts(weight, encoder_bias, decoder_bias, weight.t())
