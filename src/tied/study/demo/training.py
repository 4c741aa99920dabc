"""Training an autoencoder on the digits, and the time that a step takes.

Owns: the training loop of the studies and its optimizer. Must not know recipes from one another.
Read next: `run.py`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from tied.study.digits import Digits
from tied.study.reference import mean_squared_error

LEARNING_RATE = 0.002
WEIGHT_DECAY = 1e-4
CLIP_NORM = 1.0
BATCH = 64


@dataclass(frozen=True)
class Epoch:
    """One pass over the training images.

    Attributes:
        number: Counts from 1.
        training_error: Mean over the pass, in squared brightness (0..1) per pixel.
        held_out_error: After the pass, on images never trained on; same unit.
    """

    number: int
    training_error: float
    held_out_error: float


class Trainer:
    """AdamW with clipping on one model, batch by batch."""

    def __init__(self, model: nn.Module) -> None:
        """Take every parameter of `model`, each once."""
        self.model = model
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    def step(self, images: torch.Tensor) -> torch.Tensor:
        """Train on images `(batch, 64)`; returns their error before the step."""
        self.optimizer.zero_grad()
        error = mean_squared_error(self.model(images), images)
        error.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
        self.optimizer.step()
        return error.detach()


@torch.no_grad()
def reconstruction_error(model: nn.Module, images: torch.Tensor) -> float:
    """Measure the mean squared error per pixel on images `(count, 64)`."""
    return float(mean_squared_error(model(images), images))


def train(model: nn.Module, digits: tuple[Digits, Digits], *, epochs: int, seed: int) -> Iterator[Epoch]:
    """Train `model` in place and yield after every epoch; `seed` fixes the order of the batches.

    Args:
        model: Maps images `(batch, 64)` to images.
        digits: The training part and the held-out part.
        epochs: Passes over the training part.
        seed: Of the batch order only.
    """
    training, held_out = (part.images for part in digits)
    order = torch.Generator().manual_seed(seed)
    trainer = Trainer(model)
    for number in range(1, epochs + 1):
        batches = torch.randperm(len(training), generator=order).split(BATCH)
        errors = torch.stack([trainer.step(training[batch]) for batch in batches])
        yield Epoch(number, float(errors.mean()), reconstruction_error(model, held_out))


def step_milliseconds(
    models: Mapping[str, nn.Module], images: torch.Tensor, *, rounds: int, steps: int
) -> Iterator[dict[str, float]]:
    """Time a training step of several models in turn, so that a busy machine slows all alike.

    Args:
        models: By name.
        images: `(batch, 64)`.
        rounds: Each model is timed once per round.
        steps: Steps per timing.

    Yields:
        After every round, the median over the rounds so far, in milliseconds per step. The first round
        warms up and is not counted.
    """
    trainers = {name: Trainer(model) for name, model in models.items()}
    seen: dict[str, list[float]] = {name: [] for name in models}
    for number in range(rounds + 1):
        for name, trainer in trainers.items():
            seen[name].append(_seconds(trainer, images, steps) * 1000 / steps)
        if number == 0:
            seen = {name: [] for name in models}
        else:
            yield {name: statistics.median(times) for name, times in seen.items()}


def _seconds(trainer: Trainer, images: torch.Tensor, steps: int) -> float:
    begin = time.perf_counter()
    for _ in range(steps):
        trainer.step(images)
    return time.perf_counter() - begin
