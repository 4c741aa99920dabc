"""What the training loop asks of a task, whatever is trained.

Owns: the interface, and the seeds of everything random. Read next: `autoencoder.py`, `language.py`, `loop.py`.
"""

from __future__ import annotations

import hashlib
from typing import Protocol

import torch
from torch import nn


class Task(Protocol):
    """Data and model of one run.

    Attributes:
        training: Samples to train on, `(count, ...)`.
        held_out: Samples never trained on.
        figure_name: What is measured on them.
        unit: What the speed counts: `images`, `rows`, `tokens`.
        units_per_sample: How many of them are in a sample.
        baselines: The figure of simple rules, by name, for comparison.
        source: Where the data is from.
    """

    training: torch.Tensor
    held_out: torch.Tensor
    figure_name: str
    unit: str
    units_per_sample: int
    baselines: dict[str, float]
    source: str

    def model(self) -> nn.Module:
        """Return a new model, drawn with torch's global random numbers."""
        ...

    def inputs(self, batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return what the model is shown of a batch in training, noise included."""
        ...

    def losses(self, model: nn.Module, inputs: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
        """Return the loss of each sample, `(count,)`."""
        ...

    def figure(self, loss: float) -> float:
        """Return what is reported for a mean loss."""
        ...


def draw(*parts: object) -> int:
    """Return a seed for what the parts name: the same for the same parts, everywhere, and else unrelated.

    Every random number of a training comes from such a seed (of run, epoch, step), so no state of a generator
    has to be kept: a resumed run, and one on more processes, draws the same.

    Example:
        >>> draw("order", 0, 1) == draw("order", 0, 1), draw("order", 0, 1) == draw("order", 1, 0)
        (True, False)
    """
    text = " ".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def generator(*parts: object) -> torch.Generator:
    """Return a generator on the CPU, seeded by `draw`."""
    return torch.Generator().manual_seed(draw(*parts))
