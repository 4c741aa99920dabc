"""Tie the weights over a group, and the network has the group's symmetry: turned digits are read alike.

Owns: one proof, its network and its training. Read next: `descent.py`.

Hidden units come in fours, one for each quarter turn. A weight from pixel i to unit j is tied to the weight
from the turned pixel to the unit of the turned orientation; biases likewise; the outputs do not turn. Ravanbakhsh
et al. 2017 (arXiv:1702.08389): such a layer is equivariant, and only such a layer is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from tied.binding import tie
from tied.study.digits import Digits, load
from tied.study.proofs.proof import Control, Measurement, exactly

SIDE, TURNS, CHANNELS, CLASSES = 8, 4, 64, 10
TRAINING = 898
EPOCHS, BATCH, LEARNING_RATE = 25, 32, 1e-3

Turn = torch.Tensor
"""A permutation: where each entry is taken from in the turned vector."""


def turned_pixels() -> Turn:
    """Return the permutation of pixels that turns an image by a quarter."""
    return torch.arange(SIDE * SIDE).reshape(SIDE, SIDE).rot90().flatten()


def turned_units() -> Turn:
    """Return the permutation of hidden units: each channel's four orientations, one step on."""
    return torch.arange(CHANNELS * TURNS).reshape(CHANNELS, TURNS).roll(1, 1).flatten()


def turned_classes() -> Turn:
    """Return the permutation of classes: none moves."""
    return torch.arange(CLASSES)


def orbits(*turns: Turn) -> torch.Tensor:
    """Number the entries of a tensor so that two get one number if a quarter turn leads from one to the other.

    Args:
        turns: For each axis, the permutation that a quarter turn makes of it.

    Example:
        >>> orbits(torch.tensor([1, 0]), torch.tensor([1, 0])).tolist()
        [[0, 1], [1, 0]]
    """
    cells = torch.arange(int(torch.tensor([len(turn) for turn in turns]).prod()))
    turned = [cells.reshape([len(turn) for turn in turns])]
    for _ in range(TURNS - 1):
        turned.append(turned[-1][torch.meshgrid(*turns, indexing="ij")])
    lowest = torch.stack(turned).amin(0)
    return lowest.unique(return_inverse=True)[1].reshape(lowest.shape)


class Classifier(nn.Module):
    """Three linear layers, 64-256-256-10; tied over quarter turns, or not.

    Shapes:
        images: `(batch, 64)`; returns logits `(batch, 10)`.
    """

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        turns = [turned_pixels(), turned_units(), turned_units(), turned_classes()]
        self.layers = nn.ModuleList(nn.Linear(len(wide), len(out)) for wide, out in pairwise(turns))
        if tied:
            for number, (wide, out) in enumerate(pairwise(turns)):
                self._tie(number, "weight", orbits(out, wide))
                self._tie(number, "bias", orbits(out))

    def _tie(self, number: int, name: str, index: torch.Tensor) -> None:
        """Read a layer's weight or bias from one free number per orbit, drawn from the layer's own start."""
        start = getattr(self.layers[number], name).detach()
        free = torch.empty(int(index.max()) + 1)
        free[index.flatten()] = start.flatten()
        self.register_parameter(f"free_{name}_{number}", nn.Parameter(free))
        self.register_buffer(f"orbits_{name}_{number}", index)
        tie(self, f"layers.{number}.{name}", f"free_{name}_{number}[orbits_{name}_{number}]")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Compute the logits."""
        hidden = images
        for layer in self.layers[:-1]:
            hidden = layer(hidden).relu()
        return self.layers[-1](hidden)


@dataclass(frozen=True)
class Reading:
    """How a trained network reads 899 digits that it never saw, upright and turned by a quarter.

    Attributes:
        upright: Part of the upright digits that is read right.
        turned: Part of the turned digits that is read right.
        agreement: Part of the digits that is read the same both ways.
        parameters: How many numbers were trained.
    """

    upright: float
    turned: float
    agreement: float
    parameters: int


@cache
def reading(*, tied: bool) -> Reading:
    """Train on upright digits only, then read."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Classifier(tied=tied)
        digits = load()
        order = torch.randperm(len(digits))
        _train(model, digits.take(order[:TRAINING]))
    return _read(model.double(), digits.take(order[TRAINING:]))


def _train(model: Classifier, digits: Digits) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(digits)).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(digits.images[batch]), digits.labels[batch]).backward()
            optimizer.step()


@torch.no_grad()
def _read(model: Classifier, digits: Digits) -> Reading:
    images = digits.images.double()
    upright, turned = (model(view).argmax(1) for view in (images, images[:, turned_pixels()]))
    return Reading(
        upright=_part(upright == digits.labels),
        turned=_part(turned == digits.labels),
        agreement=_part(upright == turned),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )


def _part(which: torch.Tensor) -> float:
    return float(which.double().mean())


def turned_digits_are_read_alike() -> Iterator[Measurement]:
    """Train a network tied over quarter turns, and its untied twin, on upright digits; then turn the digits."""
    tied, untied = reading(tied=True), reading(tied=False)
    yield Measurement(
        "trained upright, it reads turned digits alike",
        tied.agreement,
        exactly(1),
        Control("untied twin", untied.agreement),
        note=f"{tied.parameters:,} parameters instead of {untied.parameters:,}.",
    )
    yield Measurement(
        "accuracy lost by turning the digits",
        tied.upright - tied.turned,
        exactly(0),
        Control("untied twin", untied.upright - untied.turned),
        note=f"The price, upright: {tied.upright:.1%} right instead of {untied.upright:.1%}. "
        f"Turned: {tied.turned:.1%} instead of {untied.turned:.1%}; one in ten is chance.",
    )
