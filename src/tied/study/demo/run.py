"""The demo: every recipe measured, timed and trained from the same start.

Owns: the order of the work. Must not print, draw or write files: the caller gets findings one by one and
may stop at any time. Read next: `report.py` for what is made of the findings.
"""

from __future__ import annotations

import copy
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn

from tied.study.demo.properties import properties
from tied.study.demo.record import DRIFTED, Finding, Plan, Run, StepTimes
from tied.study.demo.training import BATCH, Epoch, step_milliseconds, train
from tied.study.digits import Digits, load, split
from tied.study.progress import Progress
from tied.study.recipes import ALL, RAW, SECOND_PARAMETER, Recipe
from tied.study.reference import parts

TRAINED = tuple(recipe for recipe in ALL if recipe is not RAW)
STEPS_PER_TIMING = 20


Event = Progress | Finding


def demo(plan: Plan) -> Iterator[Event]:
    """Run the demo: first the properties of all recipes, then step times, then training, seed by seed.

    The stages go breadth first, so that stopping early leaves a whole table of properties.

    Args:
        plan: How much to run.

    Yields:
        `Progress`, often, and each `Properties`, `StepTimes` and `Run` as soon as it is known.
    """
    digits = load()
    with _one_thread():
        yield from _check(plan, digits)
        yield from _time(plan, digits)
        yield from _train(plan, digits)


@contextmanager
def _one_thread() -> Generator[None]:
    """Use one thread: these matrices are too small for more, and step times get steadier."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check(plan: Plan, digits: Digits) -> Iterator[Event]:
    for done, recipe in enumerate(ALL, 1):
        found = properties(recipe, plan.seed, split(digits, plan.seed)[0].images)
        yield found
        yield Progress("checking", done, len(ALL), recipe.name)


def _time(plan: Plan, digits: Digits) -> Iterator[Event]:
    models = {recipe.name: recipe.model(plan.seed) for recipe in TRAINED}
    timings = step_milliseconds(models, digits.images[:BATCH], rounds=plan.rounds, steps=STEPS_PER_TIMING)
    for done, medians in enumerate(timings, 1):
        yield StepTimes(medians)
        detail = "training steps, each recipe in turn"
        yield Progress("timing", done, plan.rounds, detail, milestone=done == plan.rounds)


@dataclass(frozen=True)
class Job:
    """One model to train.

    Attributes:
        recipe: How it is tied.
        seed: Of start, split and batch order.
        copied: Whether it is replaced by its own deep copy half-way.
    """

    recipe: Recipe
    seed: int
    copied: bool = False

    @property
    def name(self) -> str:
        """The name under which the run is kept."""
        return DRIFTED if self.copied else self.recipe.name

    def train(self, digits: tuple[Digits, Digits], epochs: int) -> Iterator[Epoch | Run]:
        """Train, yielding every epoch and at last the `Run`."""
        model, history = self.recipe.model(self.seed), list[Epoch]()
        for leg in [epochs // 2, epochs - epochs // 2] if self.copied else [epochs]:
            model = copy.deepcopy(model) if history else model
            for epoch in train(model, digits, epochs=leg, seed=self.seed + len(history)):
                history.append(replace(epoch, number=len(history) + 1))
                yield history[-1]
        sample = one_of_each(digits[1])
        yield Run(self.name, self.seed, tuple(history), parts(model), sample, _reconstruct(model, sample))


def jobs(plan: Plan) -> list[Job]:
    """List the models to train, in order; the drifted copy comes after the first seed."""
    seeds = range(plan.seed, plan.seed + plan.seeds)
    planned = [Job(recipe, seed) for seed in seeds for recipe in TRAINED]
    return [*planned[: len(TRAINED)], Job(SECOND_PARAMETER, plan.seed, copied=True), *planned[len(TRAINED) :]]


def _train(plan: Plan, digits: Digits) -> Iterator[Event]:
    planned = jobs(plan)
    for done, job in enumerate(planned, 1):
        for event in job.train(split(digits, job.seed), plan.epochs):
            if isinstance(event, Run):
                yield event
                yield Progress("training", done, len(planned), _detail(job, event.epochs[-1]))
            else:
                yield Progress("training", done - 1, len(planned), _detail(job, event), milestone=False)


def _detail(job: Job, epoch: Epoch) -> str:
    return f"{job.name}, seed {job.seed}, epoch {epoch.number}: held-out error {epoch.held_out_error:.5f}"


def one_of_each(digits: Digits) -> Digits:
    """Return the first image of each class 0..9."""
    return digits.take(torch.stack([(digits.labels == label).nonzero()[0, 0] for label in range(10)]))


@torch.no_grad()
def _reconstruct(model: nn.Module, sample: Digits) -> torch.Tensor:
    return model(sample.images).clone()
