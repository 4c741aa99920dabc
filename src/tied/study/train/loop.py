"""The training loop: one model, step by step, from any step on.

Owns: steps, epochs, early stopping, and the finished `Run`. Must not write files or know what is trained.
Read next: `checkpoint.py`.

Law: the state behind a step is a function of the plan and the number of the step. Orders, noise and dropout
come from seeds made of those numbers, so that a run that was broken off goes on as if it had not been.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tied.study.train.errors import DivergedError
from tied.study.train.interrupt import Stop
from tied.study.train.plan import Plan
from tied.study.train.processes import Processes
from tied.study.train.task import Task, draw, generator

WEIGHT_DECAY = 1e-4


@dataclass(frozen=True)
class Epoch:
    """One pass over the training part.

    Attributes:
        number: Counts from 1.
        step: Steps taken until here.
        training: The figure over the pass, noise and dropout included.
        held_out: The figure on the held-out part behind the pass.
        seconds: Spent in training until here, over all sessions.
    """

    number: int
    step: int
    training: float
    held_out: float
    seconds: float


@dataclass(frozen=True)
class Tick:
    """A sign of life between epochs: steps taken."""

    step: int


@dataclass(frozen=True)
class Run:
    """One trained model.

    Attributes:
        plan: How it was trained.
        task: On what.
        model: The model, on the CPU, in evaluation mode.
        epochs: The figures along the way.
        result: The epoch whose weights the model has.
        parameters: How many numbers were trained.
    """

    plan: Plan
    task: Task
    model: nn.Module
    epochs: tuple[Epoch, ...]
    result: Epoch
    parameters: int

    @property
    def held_out(self) -> float:
        """The figure on data that was never trained on: the error, or the perplexity."""
        return self.result.held_out


class Interrupted(Exception):
    """The user wished to stop; the training is whole and stands behind a step."""


class Training:
    """One model under training, with everything that a checkpoint holds."""

    def __init__(self, task: Task, plan: Plan, processes: Processes) -> None:
        """Draw the model."""
        self.task, self.plan, self.processes = task, plan, processes
        with self._drawn("start", plan.seed):
            model = task.model()
        self.shown = task.inputs(task.held_out, generator("noise", plan.seed, "held out"))
        optimizer = torch.optim.AdamW(model.parameters(), lr=plan.lr, weight_decay=WEIGHT_DECAY)
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self.model, self.optimizer = processes.prepare(model, optimizer)
        self.step, self.loss_sum, self.seconds = 0, 0.0, 0.0
        self.epochs: list[Epoch] = []
        self.best_weights: dict[str, torch.Tensor] = {}

    @contextmanager
    def _drawn(self, *parts: object) -> Generator[None]:
        """Seed torch's global random numbers, and leave them as they were."""
        with torch.random.fork_rng(devices=self.processes.devices_with_random_numbers):
            torch.manual_seed(draw(*parts))
            yield

    @property
    def steps_per_epoch(self) -> int:
        """How many steps a pass takes."""
        return math.ceil(len(self.task.training) / self.plan.batch_size)

    @property
    def result(self) -> Epoch:
        """The epoch that counts: the last one; with patience, the one with the lowest held-out figure."""
        return min(self.epochs, key=lambda epoch: epoch.held_out) if self.plan.patience else self.epochs[-1]

    @property
    def is_finished(self) -> bool:
        """Whether the last epoch is done, or patience is at an end."""
        if self.plan.patience and self.epochs and len(self.epochs) - self.result.number >= self.plan.patience:
            return True
        return len(self.epochs) >= self.plan.epochs

    def run(self, stop: Stop) -> Iterator[Tick | Epoch]:
        """Train until finished.

        Yields:
            Each `Epoch`; between them a `Tick` behind every step.

        Raises:
            Interrupted: a stop was wished; nothing is half done.
        """
        while not self.is_finished:
            batches = self._batches(len(self.epochs))
            for batch in batches[self.step - len(self.epochs) * self.steps_per_epoch :]:
                begin = time.perf_counter()
                loss, wished = self._step(batch, stop)
                self.step, self.loss_sum = self.step + 1, self.loss_sum + loss
                self.seconds += time.perf_counter() - begin
                if wished:
                    raise Interrupted
                yield Tick(self.step)
            yield self._epoch()

    def _batches(self, epoch: int) -> tuple[torch.Tensor, ...]:
        """Return the order of an epoch, cut into batches."""
        order = torch.randperm(len(self.task.training), generator=generator("order", self.plan.seed, epoch))
        return order.split(self.plan.batch_size)

    def _step(self, indices: torch.Tensor, stop: Stop) -> tuple[float, bool]:
        """Take one step; returns the sum of the batch's losses, and whether any process wishes to stop."""
        processes, seed = self.processes, self.plan.seed
        batch = self.task.training[indices]
        inputs = self.task.inputs(batch, generator("noise", seed, self.step))
        (mine, factor), (shown, _) = processes.share(batch), processes.share(inputs)
        self.model.train()
        with self._drawn("dropout", seed, self.step, processes.number):
            losses = self.task.losses(self.model, shown.to(processes.device), mine.to(processes.device)).sum()
            processes.step(self.model, self.optimizer, losses * factor)
        loss, wishes = processes.total(losses.item() if factor else 0.0, float(stop.wished))
        return loss, bool(wishes)

    def _epoch(self) -> Epoch:
        """Measure behind a pass."""
        begin = time.perf_counter()
        held_out = self.task.figure(self.measured())
        self.seconds += time.perf_counter() - begin
        training = self.task.figure(self.loss_sum / len(self.task.training))
        if not math.isfinite(training + held_out):
            raise _diverged(self.plan, len(self.epochs) + 1)
        made = Epoch(len(self.epochs) + 1, self.step, training, held_out, self.seconds)
        self.epochs.append(made)
        self.loss_sum = 0.0
        if self.plan.patience and self.result is made:
            weights = self.processes.plain(self.model).state_dict()
            self.best_weights = {name: weight.detach().cpu().clone() for name, weight in weights.items()}
        return made

    @torch.no_grad()
    def measured(self) -> float:
        """Return the mean loss on the held-out part, with the same noise each time."""
        self.model.eval()
        processes, task, total = self.processes, self.task, 0.0
        model = processes.plain(self.model)
        own = torch.arange(processes.number, len(task.held_out), processes.count)
        for part in own.split(self.plan.batch_size):
            shown, clean = self.shown[part].to(processes.device), task.held_out[part].to(processes.device)
            total += float(task.losses(model, shown, clean).double().sum())
        return processes.total(total)[0] / len(task.held_out)

    def state(self) -> dict[str, Any]:
        """Return everything but the weights, as plain values and tensors."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "loss_sum": self.loss_sum,
            "seconds": self.seconds,
            "epochs": [vars(epoch) for epoch in self.epochs],
            "best_weights": self.best_weights,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.loss_sum, self.seconds = state["step"], state["loss_sum"], state["seconds"]
        self.epochs = [Epoch(**epoch) for epoch in state["epochs"]]
        self.best_weights = state["best_weights"]

    def finished(self) -> Run:
        """Return the run with its model on the CPU, ready for use: the last one, or with patience the best one."""
        model = self.processes.plain(self.model).cpu().eval()
        if self.best_weights:
            model.load_state_dict(self.best_weights)
        return Run(self.plan, self.task, model, tuple(self.epochs), self.result, self.parameters)


def _diverged(plan: Plan, epoch: int) -> DivergedError:
    return DivergedError(
        "The loss is no number any more.",
        found=f"not-a-number in epoch {epoch}, at a learning rate of {plan.lr:g}",
        expected="a finite loss",
        fix=f"--lr {plan.lr / 10:g}",
    )
