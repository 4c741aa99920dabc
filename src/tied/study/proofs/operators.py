"""Tied weights are the linear operators that textbooks say: adjoints, Toeplitz matrices, sums of gradients.

Owns: three proofs. The oracle is torch's own convolution and the definition of an adjoint.
Read next: `rotation.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn

from tied.algebra import Expression, parse
from tied.binding import tie
from tied.study.proofs.proof import Control, Measurement, at_most

EXACT = 1e-12
CHANNELS, SIDE = 3, 9
TAPS, LENGTH = 5, 24

LINEAR = (
    "w.T",
    "2 * w",
    "-w.T",
    "w[1:5]",
    "w.flip(0, 1)",
    "w.roll(2, 1)",
    "w.reshape(4, 12)",
    "w.unsqueeze(0).expand(3, 6, 8)",
    "w.repeat_interleave(2, 0)",
    "cat([w, w.flip(0)], 1)",
    "stack([w, 3 * w], 0)",
    "w + w.flip(1)",
    "w[0, :][i]",
)
"""Expressions that are linear in w `(6, 8)`; i is a buffer of indices, -1 for a structural zero."""


def seeded(seed: int = 0) -> torch.Generator:
    """Return the random numbers of a proof: the same in every run."""
    return torch.Generator().manual_seed(seed)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    """Return standard normal numbers in float64."""
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def _off(left: torch.Tensor, right: torch.Tensor) -> float:
    """Return the largest absolute difference, relative to the largest absolute figure."""
    return float((left - right).abs().max() / right.abs().max())


# A convolution and its adjoint


class Mirror(nn.Module):
    """A strided convolution, and a transposed one with the same weight or another."""

    def __init__(self, weight: str) -> None:
        super().__init__()
        self.down = nn.Conv2d(CHANNELS, CHANNELS, 3, stride=2, bias=False, dtype=torch.float64)
        self.up = nn.ConvTranspose2d(CHANNELS, CHANNELS, 3, stride=2, bias=False, dtype=torch.float64)
        with torch.no_grad():
            self.down.weight.copy_(drawn(*self.down.weight.shape))
        tie(self, "up.weight", weight)

    def gap(self) -> float:
        """Return the relative difference of ⟨down(x), y⟩ and ⟨x, up(y)⟩."""
        image, code = drawn(2, CHANNELS, SIDE, SIDE, seed=1), drawn(2, CHANNELS, SIDE // 2, SIDE // 2, seed=2)
        with torch.no_grad():
            return _off((image * self.up(code)).sum(), (self.down(image) * code).sum())


def transposed_convolution_is_the_adjoint() -> Iterator[Measurement]:
    """Test ⟨conv(x), y⟩ = ⟨x, convT(y)⟩ with one weight in both."""
    yield Measurement(
        "⟨conv(x), y⟩ = ⟨x, convT(y)⟩ with one weight",
        Mirror("down.weight").gap(),
        at_most(EXACT),
        Control("channel axes swapped, as for a matrix", Mirror("down.weight.transpose(0, 1)").gap()),
    )


# A Toeplitz matrix and a convolution


class Toeplitz(nn.Module):
    """A linear layer whose matrix is read from a vector of taps by an index; -1 reads zero."""

    def __init__(self, index: torch.Tensor) -> None:
        super().__init__()
        self.taps = nn.Parameter(drawn(TAPS))
        self.register_buffer("index", index)
        self.linear = nn.Linear(index.shape[1], index.shape[0], bias=False, dtype=torch.float64)
        tie(self, "linear.weight", "taps[index]")

    def forward(self, signal: torch.Tensor) -> torch.Tensor:
        """Map `(batch, length)` to `(batch, length - taps + 1)`."""
        return self.linear(signal)


def toeplitz_index(*, reverse: bool = False) -> torch.Tensor:
    """Return which tap stands where: `W[i, j] = taps[j - i]`, or the taps in reverse order."""
    tap = torch.arange(LENGTH)[None, :] - torch.arange(LENGTH - TAPS + 1)[:, None]
    inside = (tap >= 0) & (tap < TAPS)
    return torch.where(inside, TAPS - 1 - tap if reverse else tap, -1)


def _against_conv1d(index: torch.Tensor) -> tuple[float, float]:
    """Return how far output and gradient of the taps are from those of `conv1d`."""
    layer, signal, pull = Toeplitz(index), drawn(4, LENGTH, seed=3), drawn(4, LENGTH - TAPS + 1, seed=4)
    taps = layer.taps.detach().clone().requires_grad_()
    expected = nn.functional.conv1d(signal[:, None], taps[None, None])[:, 0]
    output = layer(signal)
    (gradient,) = torch.autograd.grad((output * pull).sum(), layer.taps)
    (oracle,) = torch.autograd.grad((expected * pull).sum(), taps)
    return _off(output.detach(), expected.detach()), _off(gradient, oracle)


def toeplitz_is_convolution() -> Iterator[Measurement]:
    """Compare a linear layer, tied by an index to a vector, with torch's convolution."""
    right, wrong = _against_conv1d(toeplitz_index()), _against_conv1d(toeplitz_index(reverse=True))
    reason = "taps in reverse order"
    yield Measurement("a Toeplitz-tied layer is conv1d: output", right[0], at_most(EXACT), Control(reason, wrong[0]))
    yield Measurement("a Toeplitz-tied layer is conv1d: gradient", right[1], at_most(EXACT), Control(reason, wrong[1]))


# The gradient of a tie is the adjoint of its transform


class Reader(nn.Module):
    """A source w `(6, 8)` and a target that an expression reads from it."""

    def __init__(self, expression: Expression) -> None:
        super().__init__()
        self.w = nn.Parameter(drawn(6, 8))
        index = torch.tensor([[0, 7, -1, 3], [3, 3, 2, -1]])
        self.register_buffer("i", index)
        shape = expression.value({("w",): self.w, ("i",): index}).shape
        self.target = nn.Parameter(torch.zeros(shape, dtype=torch.float64))
        tie(self, "target", expression)


def _adjoint_gap(text: str, backward: Callable[[torch.Tensor], torch.Tensor]) -> float:
    """Return the relative difference of ⟨A x, y⟩ and ⟨x, A* y⟩, A* y being the source's gradient."""
    model = Reader(parse(text))
    value = model.target
    pull = drawn(*value.shape, seed=5)
    left = (value * pull).sum()
    (gradient,) = torch.autograd.grad(left, model.w)
    with torch.no_grad():
        return float((left - (model.w * backward(gradient)).sum()).abs() / (value.norm() * pull.norm()))


def gradients_are_adjoints() -> Iterator[Measurement]:
    """Test ⟨A x, y⟩ = ⟨x, A* y⟩ for the linear transforms, A* being what autograd hands the source."""
    right = max(_adjoint_gap(text, lambda gradient: gradient) for text in LINEAR)
    wrong = min(_adjoint_gap(text, lambda gradient: gradient.flip(0)) for text in LINEAR)
    yield Measurement(
        f"⟨A x, y⟩ = ⟨x, gradient⟩ for {len(LINEAR)} transforms",
        right,
        at_most(EXACT),
        Control("gradient upside down, least of all", wrong),
    )
