"""What a run of the demo has found so far.

Owns: the findings as values, their sum, and their JSON form. Must not measure or draw.
Read next: `run.py`, which makes the findings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from tied.study.comparison import mean_and_deviation, tied_against_untied
from tied.study.demo.properties import Properties
from tied.study.demo.training import Epoch
from tied.study.digits import CREDIT, Digits
from tied.study.recipes import BY_NAME, TIED, UNTIED
from tied.study.reference import Parts
from tied.study.run_record import RunRecord, versions

DRIFTED = "nn.Parameter(w.t()), deep-copied half-way"
"""Name of the extra run that shows what becomes of a cut tie; it is no row of the table."""


@dataclass(frozen=True)
class Plan:
    """How much to run.

    Attributes:
        seed: The first seed; the others follow it.
        seeds: How many starts, splits and batch orders.
        epochs: Passes over the training images in each run.
        rounds: Timings of each recipe's step.
    """

    seed: int = 0
    seeds: int = 3
    epochs: int = 300
    rounds: int = 40

    @classmethod
    def quick(cls, seed: int = 0) -> Plan:
        """Return a plan of a few seconds."""
        return cls(seed, seeds=2, epochs=40, rounds=15)


@dataclass(frozen=True)
class StepTimes:
    """Median milliseconds per training step, by recipe."""

    milliseconds: Mapping[str, float]


@dataclass(frozen=True)
class Run:
    """One trained model.

    Attributes:
        recipe: Its name.
        seed: Of start, split and batch order.
        epochs: The errors along the way.
        parts: The trained parameters.
        sample: Ten held-out digits, one of each class.
        reconstructions: What the model made of them, `(10, 64)`.
    """

    recipe: str
    seed: int
    epochs: tuple[Epoch, ...]
    parts: Parts
    sample: Digits
    reconstructions: torch.Tensor

    @property
    def held_out_error(self) -> float:
        """The error after the last epoch, in squared brightness per pixel."""
        return self.epochs[-1].held_out_error


Finding = Properties | StepTimes | Run


@dataclass
class Record(RunRecord[Finding]):
    """The findings of one run of the demo, in the order of the recipes."""

    plan: Plan
    properties: dict[str, Properties] = field(default_factory=dict)
    milliseconds: dict[str, float] = field(default_factory=dict)
    runs: dict[str, list[Run]] = field(default_factory=dict)

    def add(self, found: Finding) -> None:
        """Keep one finding."""
        if isinstance(found, Properties):
            self.properties[found.recipe] = found
        elif isinstance(found, StepTimes):
            self.milliseconds.update(found.milliseconds)
        else:
            self.runs.setdefault(found.recipe, []).append(found)

    def errors(self, recipe: str) -> list[float]:
        """Return the held-out errors of a recipe, one per finished run."""
        return [run.held_out_error for run in self.runs.get(recipe, [])]

    def first_run(self, recipe: str) -> Run | None:
        """Return the run of the first seed, if it is finished."""
        return next(iter(self.runs.get(recipe, [])), None)

    def price(self) -> str:
        """Compare the held-out errors of tied and untied; `""` before both are known."""
        tied, untied = self.errors(TIED.name), self.errors(UNTIED.name)
        return tied_against_untied(tied, untied) if tied and untied else ""

    def to_json(self) -> dict[str, Any]:
        """Return everything but pixels and weights as plain values, ready for `json.dumps`."""
        return {
            "format_version": self.format_version,
            "plan": dataclasses.asdict(self.plan),
            "interrupted": self.interrupted,
            "elapsed_seconds": self.elapsed_seconds,
            "versions": versions(),
            "data": CREDIT,
            "recipes": [self._recipe(name) for name in self.properties],
        }

    def _recipe(self, name: str) -> dict[str, Any]:
        known = self.properties[name]
        errors = self.errors(name)
        return {
            "name": name,
            "line": BY_NAME[name].line,
            "error": known.error,
            "parameters": known.parameters,
            "gradient_from_both_uses": known.gradient_from_both,
            "gradient_difference": known.gradient_difference,
            "steps_difference": known.steps_difference,
            "survival": dict(known.survival),
            "held_out_errors": errors,
            "held_out_error_mean": mean_and_deviation(errors)[0] if errors else None,
            "held_out_error_deviation": mean_and_deviation(errors)[1] if len(errors) > 1 else None,
            "milliseconds_per_step": self.milliseconds.get(name),
        }
