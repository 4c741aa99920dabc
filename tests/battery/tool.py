"""A tool, and what is done with the model that comes out of it."""

import contextlib
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from battery.subjects import LAYERS, Subject, inputs

Act = Callable[[nn.Module], Any]


@dataclass(frozen=True)
class Tool:
    """Something that people do to a model.

    Attributes:
        group: Of the table in the docs.
        name: In the words of its users.
        act: Does it, and returns tensors that show whether it was right.
        needs: The package that it comes from, if that is not torch.
        blind: What it cannot see of a transform, and nobody can tell it; an identity has to be right all the same.
        foreign: The error of its own in which it ends under a transform, where nothing of ours is asked.
        subject: What it is tried on.
        plain_is_wrong: Whether it gets plain sharing wrong, so that an identity may be refused, too.
    """

    group: str
    name: str
    act: Act
    needs: str = ""
    blind: str = ""
    foreign: str = ""
    subject: Subject = LAYERS
    plain_is_wrong: bool = False

    def __str__(self) -> str:
        return f"{self.group}: {self.name}"


def trained(model: nn.Module, optimizer: torch.optim.Optimizer | None = None, steps: int = 3) -> Tensor:
    """Train, and return what the model computes then."""
    optimizer = optimizer or torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for step in range(steps):
        optimizer.zero_grad()
        model(inputs(step)).square().mean().backward()
        optimizer.step()
    return model(inputs(9)).detach()


def both(model: nn.Module) -> list[Tensor]:
    """Return what a model computes, and computes after training."""
    return [model(inputs()).detach(), trained(model)]


def quietly(act: Act) -> Act:
    def quiet(model: nn.Module) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return act(model)

    return quiet


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)
