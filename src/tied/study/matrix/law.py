"""The one law by which the matrix judges: a tied model is one parameter, and trains as one.

Owns: the reference written out by hand, and the five checks of the law. Must not know rows or recipes, and the
reference must not use `tied`: it is the oracle. Read next: `row.py`.

    value       the model computes what the formula gives for the source's weight
    counted     its parameters are those of the formula, each once
    follows     after a write to the source, the model computes with the new values
    gradient    the source's gradient is the sum over both uses
    training    after three steps of AdamW with clipping and decay, all is still as in the formula
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tied.study.matrix.subject import Missing, Subject
from tied.study.reference import clipped_step, mean_squared_error, optimizer_for

STEPS = 3
BOUNDS = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Largest absolute difference that counts as equal; a step moves a weight by 0.01."""

MakeOptimizer = Callable[[Iterable[Tensor]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: What, in one word.
        holds: Whether it is as it should be.
        evidence: What was found, in words and figures.
    """

    name: str
    holds: bool
    evidence: str

    def __str__(self) -> str:
        """Return one line."""
        return f"{self.name}: {self.evidence}"


class Oracle:
    """The formula on leaves of its own, which start from the values of a subject."""

    def __init__(self, subject: Subject) -> None:
        """Copy the subject's leaves; what is frozen there is frozen here."""
        self.kind, self.formula = subject.kind, subject.weight
        self.leaves = {
            leaf: tensor.detach().clone().requires_grad_(tensor.requires_grad)
            for leaf, tensor in subject.leaves().items()
        }

    def __call__(self, inputs: Tensor) -> Tensor:
        """Compute the outputs."""
        return self.kind.compute(self.leaves, self.weight(), inputs)

    def weight(self) -> Tensor:
        """Compute the shared weight."""
        return self.formula(self.leaves)

    def parameters(self) -> list[Tensor]:
        """Return the leaves that train."""
        return [leaf for leaf in self.leaves.values() if leaf.requires_grad]

    def count(self) -> int:
        """Count the numbers in the leaves."""
        return sum(leaf.numel() for leaf in self.leaves.values())


def batch(subject: Subject, number: int) -> tuple[Tensor, Tensor]:
    """Draw inputs and goals; the same for the same number."""
    generator = torch.Generator().manual_seed(number)
    inputs = subject.kind.inputs(generator, subject.dtype)
    return inputs, torch.randn(subject.kind.goal, generator=generator, dtype=subject.dtype)


def bound(subject: Subject) -> float:
    """Return what counts as equal in the subject's dtype."""
    return BOUNDS[subject.dtype]


def largest(difference: Tensor) -> float:
    """Return the largest absolute entry; infinite where there is one that is no number."""
    return float(difference.detach().abs().nan_to_num(nan=float("inf")).max())


def relative(found: Tensor | None, expected: Tensor | None) -> float:
    """Return the largest difference, relative to the largest entry expected; no gradient at all counts as zero."""
    assert expected is not None
    return largest(expected if found is None else found - expected) / largest(expected)


def near(name: str, found: float, most: float, what: str) -> Check:
    """Check that a difference is at most `most`."""
    return Check(name, found <= most, f"{what} differs by {found:.2g} (equal: at most {most:.0e})")


def law(subject: Subject) -> list[Check]:
    """Check the whole law; looking changes nothing but the trained values."""
    try:
        subject.leaves()
        return [value(subject), counted(subject), follows(subject), gradient(subject), training(subject)]
    except Missing as missing:
        return [Check("counted", False, str(missing))]


@torch.no_grad()
def value(subject: Subject) -> Check:
    """Compare the outputs with the formula's."""
    inputs, _ = batch(subject, 1)
    found = largest(subject(inputs) - Oracle(subject)(inputs))
    return near("value", found, bound(subject), "the output")


def counted(subject: Subject) -> Check:
    """Count the numbers that an optimizer would get."""
    found, wanted = sum(parameter.numel() for parameter in subject.model.parameters()), Oracle(subject).count()
    return Check("counted", found == wanted, f"{found:,} numbers in parameters(), {wanted:,} in the formula")


@torch.no_grad()
def follows(subject: Subject) -> Check:
    """Write new values into the source and compare again; then put the old ones back."""
    source, (inputs, _) = subject.leaves()[subject.main], batch(subject, 2)
    kept = source.clone()
    source.copy_(torch.linspace(-0.5, 1, source.numel(), dtype=source.dtype).view_as(source))
    found = largest(subject(inputs) - Oracle(subject)(inputs))
    source.copy_(kept)
    return near("follows", found, bound(subject), "after a write to the source, the output")


def gradient(subject: Subject) -> Check:
    """Compare the gradient at the source with the formula's, relative to its largest entry."""
    oracle, (inputs, goals) = Oracle(subject), batch(subject, 3)
    source = subject.leaves()[subject.main]
    if not source.requires_grad:
        return Check("gradient", True, "the source is frozen")
    mean_squared_error(oracle(inputs), goals).backward()
    subject.model.zero_grad()
    mean_squared_error(subject(inputs), goals).backward()
    found = relative(source.grad, oracle.leaves[subject.main].grad)
    return near("gradient", found, bound(subject), "the source's gradient (relative)")


def training(
    subject: Subject, make: MakeOptimizer = optimizer_for, step: Callable[..., float] = clipped_step, steps: int = STEPS
) -> Check:
    """Train the subject and the formula side by side, and compare leaves and outputs afterwards."""
    oracle = Oracle(subject)
    optimizers = [make([p for p in subject.model.parameters() if p.requires_grad]), make(oracle.parameters())]
    for number in range(steps):
        inputs, goals = batch(subject, 10 + number)
        for optimizer, run in zip(optimizers, (subject, oracle), strict=True):
            step(optimizer, lambda run=run, x=inputs, y=goals: mean_squared_error(run(x), y))
    name = type(optimizers[0]).__name__
    return near("training", distance(subject, oracle), bound(subject), f"after {steps} steps of {name}, the model")


@torch.no_grad()
def distance(subject: Subject, oracle: Oracle) -> float:
    """Return the largest difference between the leaves, and between the outputs."""
    inputs, _ = batch(subject, 4)
    found = [largest(tensor - oracle.leaves[leaf]) for leaf, tensor in subject.leaves().items()]
    return max(*found, largest(subject(inputs) - oracle(inputs)))


def failed(checks: Iterable[Check]) -> Iterator[Check]:
    """Yield the checks that do not hold."""
    return (check for check in checks if not check.holds)
