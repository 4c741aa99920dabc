"""Training from Python: `train` one plan, `compare` it with its untied twin, or follow a job event by event.

Owns: the order of the work, and when things are written. Must not print or draw. Read next: `loop.py`, `results.py`.
"""

from __future__ import annotations

import csv
import io
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tied.study.output_folder import write_whole
from tied.study.progress import Progress
from tied.study.train.checkpoint import restore, write_checkpoint, write_model
from tied.study.train.interrupt import Stop
from tied.study.train.job import Data, Job, Plan, check_folder, read_data, task_of, write_plan
from tied.study.train.loop import Epoch, Interrupted, Run, Training
from tied.study.train.processes import Processes
from tied.study.train.results import write_results

SECONDS_BETWEEN_CHECKPOINTS = 10.0
SECONDS_BETWEEN_LINES = 5.0
SECONDS_BETWEEN_SIGNS = 0.25
HISTORY = "history.csv"


Event = Progress | Run


def train(
    plan: Plan, *, data: Data | None = None, out: str | os.PathLike[str] | None = None, resume: bool = False
) -> Run:
    """Train one model.

    Args:
        plan: What to train; `tie=False` for the untied twin.
        data: Samples or a corpus; what `plan.data` names, where not given.
        out: Folder for checkpoints, result and report; nothing is written where not given.
        resume: Go on with what the folder holds, as if nothing had happened.

    Returns:
        The model with its figures.

    Raises:
        DataError: the data cannot be trained on.
        FolderError: the folder holds a run already, or none to resume.
        DivergedError: the loss is no number any more.
        MissingPackageError: accelerate is not installed, or what this kind of file needs.
        KeyboardInterrupt: Ctrl-C; a checkpoint was written first.

    Example:
        >>> from tied.study.train import AutoencoderPlan
        >>> run = train(AutoencoderPlan(epochs=2))
        >>> run.parameters, run.held_out < run.task.baselines["the mean sample"]
        (10576, True)
    """
    (run,) = _finished(Job(plan, out=_path(out), resume=resume), data)
    return run


def compare(
    plan: Plan,
    *,
    seeds: int = 3,
    data: Data | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
) -> list[Run]:
    """Train a plan and its untied twin, at equal steps, from several seeds.

    Args:
        plan: What to train.
        seeds: How many starts, splits and orders, from the plan's seed on.
        data: As for `train`.
        out: As for `train`.
        resume: As for `train`.

    Returns:
        Tied and untied in turn, seed by seed.

    Raises:
        PlanError: the plan has patience, which would end the twins at different steps.
    """
    return _finished(Job(plan, compare=True, seeds=seeds, out=_path(out), resume=resume), data)


def _path(out: str | os.PathLike[str] | None) -> Path | None:
    return None if out is None else Path(out)


def _finished(job: Job, data: Data | None) -> list[Run]:
    runs = [event for event in events(job, Processes(), data) if isinstance(event, Run)]
    if job.out and Processes().are_led_from_here:
        write_results(job, runs)
    return runs


def events(job: Job, processes: Processes, data: Data | None = None) -> Iterator[Event]:
    """Do a job.

    Yields:
        `Progress`, often, and each `Run` as soon as it is finished. A run that was finished before is only read.

    Raises:
        KeyboardInterrupt: a stop was wished; where the job has a folder, a checkpoint was written.
    """
    data = read_data(job.plan) if data is None else data
    check_folder(job, data)
    processes.wait()  # nobody may write before all have looked
    if processes.are_led_from_here:
        write_plan(job, data)
    with Stop() as stop:
        yield from _Session(job, processes, data, stop).run()


@dataclass
class _Session:
    """The present sitting: the clock, and what is due."""

    job: Job
    processes: Processes
    data: Data
    stop: Stop
    begin: float = field(default_factory=time.perf_counter)
    epochs_done: int = 0
    steps_here: int = 0
    last: dict[str, float] = field(default_factory=dict[str, float])
    histories: dict[str, list[Epoch]] = field(default_factory=dict[str, list[Epoch]])

    def run(self) -> Iterator[Event]:
        for plan in self.job.plans:
            training = Training(task_of(plan, self.data), plan, self.processes)
            if self.job.resume and self.job.out:
                restore(training, self.job.out / plan.name)
            self.histories[plan.name] = training.epochs
            try:
                yield from self._train(training)
            except Interrupted:
                self._save(training)
                raise KeyboardInterrupt(f"{plan.name}, step {training.step}") from None
            self._save(training)
            run = training.finished()
            if self.job.out and self.processes.are_led_from_here:
                write_model(run.model, self.job.out / plan.name)
            self.epochs_done += plan.epochs
            yield run

    def _train(self, training: Training) -> Iterator[Progress]:
        for event in training.run(self.stop):
            ended = isinstance(event, Epoch)
            self.steps_here += not ended
            if self._due("checkpoint", SECONDS_BETWEEN_CHECKPOINTS):
                self._save(training)
            if ended and (training.is_finished or self._due("line", SECONDS_BETWEEN_LINES)):
                yield self._progress(training, milestone=True)
            elif self._due("sign", SECONDS_BETWEEN_SIGNS):
                yield self._progress(training, milestone=False)

    def _due(self, what: str, seconds: float) -> bool:
        """Tell whether something was last done so long ago, and note that it is done now."""
        now = time.perf_counter()
        due = now - self.last.setdefault(what, self.begin) >= seconds
        if due:
            self.last[what] = now
        return due

    def _save(self, training: Training) -> None:
        if self.job.out and self.processes.are_led_from_here:
            write_checkpoint(training, self.job.out / training.plan.name)
            write_whole(self.job.out / HISTORY, history(self.histories))

    def _progress(self, training: Training, *, milestone: bool) -> Progress:
        job, plan, task = self.job, training.plan, training.task
        done, total = self.epochs_done + len(training.epochs), sum(plan.epochs for plan in job.plans)
        words = f"{plan.name}, epoch {min(len(training.epochs) + (not milestone), plan.epochs)}"
        if training.epochs:
            words += f": {task.figure_name} {training.epochs[-1].held_out:.4g}"
        if self.steps_here:  # none, if gone on from the last step of an epoch
            speed = self.steps_here / (time.perf_counter() - self.begin)
            left = (total - self.epochs_done) * training.steps_per_epoch - training.step
            samples = speed * len(task.training) / training.steps_per_epoch * task.units_per_sample
            words += f"; {samples:,.0f} {task.unit}/s, {_clock(left / speed)} left"
        return Progress("training", done, total, words, milestone)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def history(histories: Mapping[str, Sequence[Epoch]]) -> bytes:
    """Write the figures of all epochs as CSV."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["run", "epoch", "step", "training", "held_out", "seconds"])
    for name, epochs in histories.items():
        for epoch in epochs:
            figures = (repr(epoch.training), repr(epoch.held_out), f"{epoch.seconds:.3f}")
            writer.writerow([name, epoch.number, epoch.step, *figures])
    return stream.getvalue().encode()
