"""`tied train autoencoder` and `tied train lm`: training with a folder, under accelerate or alone.

Owns: the options, which are the fields of the plans, the words around the run, and the exit status.
Must not train: `tied.study.train` does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
import os
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tied.cli.terminal import say, show_table, watching
from tied.cli.wording import said
from tied.errors import TieError
from tied.study.train.errors import DataError, DivergedError, FolderError, MissingPackageError, PlanError
from tied.study.train.plan import AutoencoderPlan, LanguagePlan, Plan

if TYPE_CHECKING:
    from tied.study.train.job import Job
    from tied.study.train.loop import Run
    from tied.study.train.processes import Processes

FAILED, WRONG_USE, INTERRUPTED = 1, 2, 130
SEEDS_OF_A_COMPARISON = 3
UNSAVED = "If a training had begun, --resume goes on from its last checkpoint."
FLAGS = {"tie": "--tie/--no-tie", "conv": "--conv"}

train = typer.Typer(
    help="Train a tied autoencoder or language model on your own data.", no_args_is_help=True, rich_markup_mode=None
)


# Options: the fields of a plan, and these


def _sizes(text: str | tuple[int, ...]) -> tuple[int, ...]:
    """Read `128,16`."""
    if isinstance(text, tuple):
        return text
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise PlanError("sizes", text, "positive integers, such as 128,16") from None


def _parameter(name: str, default: Any, kind: Any, **option: Any) -> inspect.Parameter:
    flag = FLAGS.get(name, f"--{name.replace('_', '-')}")
    annotation = Annotated[kind, typer.Option(option.pop("flag", flag), **option)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _options(plan: type[Plan]) -> list[inspect.Parameter]:
    """Return the options of a command: one for each field of the plan, then those of every training."""
    found: list[inspect.Parameter] = []
    common = {field.name for field in dataclasses.fields(Plan)}
    for field in sorted(dataclasses.fields(plan), key=lambda field: field.name in common):
        special: dict[str, Any] = {"metavar": "N,N,..."} if field.name == "sizes" else {}
        kind = str if field.name == "sizes" else type(field.default)
        default = "" if field.name == "sizes" else field.default
        found.append(_parameter(field.name, default, kind, help=field.metadata["help"], **special))
    out = Path(f"tied-{plan.kind}")
    return [
        *found,
        _parameter("compare", False, bool, flag="--compare", help="Train the untied twin, too, from three seeds."),
        _parameter("seeds", 0, int, help="How many starts, splits and orders.", show_default="1; 3 with --compare"),
        _parameter("out", out, Path, help="Folder for checkpoints, model, pictures and report."),
        _parameter("resume", False, bool, flag="--resume", help="Go on with what the folder holds."),
        _parameter("as_json", False, bool, flag="--json", help="Print the results as JSON only."),
    ]


def _command(plan: type[Plan], words: str) -> None:
    """Add a command whose options are the fields of a plan."""

    def command(**values: Any) -> None:
        _train(plan, values)

    options = _options(plan)
    command.__signature__ = inspect.Signature(options)  # pyright: ignore[reportFunctionMemberAccess]
    command.__annotations__ = {option.name: option.annotation for option in options}
    command.__doc__ = words
    train.command(plan.kind)(command)


_command(
    AutoencoderPlan,
    """Train an autoencoder on images or on rows of numbers.

    Shows the held-out error over the epochs, and writes a folder: the model with its ties, checkpoints, a CSV of
    the run, pictures of filters, reconstructions and codes, and a page with all of it. Ctrl-C writes a checkpoint;
    --resume goes on from it as if nothing had happened. `accelerate launch -m tied train autoencoder ...` runs
    the same on several processes.

    Exit status: 0, or 1 if the loss is no number any more, 2 for wrong use or data, 130 if interrupted.
    """,
)
_command(
    LanguagePlan,
    """Train a small language model on a text.

    Shows the perplexity on the held-out end of the text over the epochs, and writes a folder: the model with its
    ties, checkpoints, a CSV of the run, a picture, and a page with what the model writes. Ctrl-C writes a checkpoint;
    --resume goes on from it as if nothing had happened. `accelerate launch -m tied train lm ...` runs the same on
    several processes.

    Exit status: 0, or 1 if the loss is no number any more, 2 for wrong use or data, 130 if interrupted.
    """,
)


# The run


def _train(plan: type[Plan], values: dict[str, Any]) -> None:
    """Train, print and write; every way to end has its status."""
    as_json = values.pop("as_json")
    try:
        with _silent_unless_first():
            made = _plan(plan, values)
            say("Loading torch ...")
            _report(_job(made, values), as_json=as_json)
    except (PlanError, MissingPackageError) as error:
        raise _ended(f"tied train {plan.kind}: {error}", WRONG_USE) from None
    except TieError as error:
        status = FAILED if isinstance(error, DivergedError) else WRONG_USE
        state = None if isinstance(error, DataError | FolderError | DivergedError) else ""  # others speak of models
        raise _ended(f"tied train {plan.kind}: {said(error, state=state)}", status) from None
    except OSError as error:
        raise _ended(f"tied train {plan.kind}: {values['out']}: {error.strerror or error}", WRONG_USE) from None
    except KeyboardInterrupt as stop:
        raise _ended(str(stop) or f"Interrupted. {UNSAVED}", INTERRUPTED) from None


@contextlib.contextmanager
def _silent_unless_first() -> Generator[None]:
    """Let one process speak where `accelerate launch` started several."""
    if os.environ.get("RANK", "0") == "0":
        yield
        return
    with (
        Path(os.devnull).open("w") as nothing,
        contextlib.redirect_stdout(nothing),
        contextlib.redirect_stderr(nothing),
    ):
        yield


def _ended(words: str, status: int) -> typer.Exit:
    with _silent_unless_first():
        say(words)
    return typer.Exit(status)


def _plan(kind: type[Plan], values: dict[str, Any]) -> Any:
    """Make the plan of the options; torch is not needed to refuse them."""
    known = {field.name: values[field.name] for field in dataclasses.fields(kind)}
    if "sizes" in known:
        known["sizes"] = _sizes(known["sizes"]) if known["sizes"] else ()
    return kind(**known)


def _job(plan: Any, values: dict[str, Any]) -> Job:
    """Make the job of the options."""
    from tied.study.train.job import Job

    seeds = values["seeds"] or (SEEDS_OF_A_COMPARISON if values["compare"] else 1)
    return Job(plan, values["compare"], seeds, values["out"], values["resume"])


def _report(job: Job, *, as_json: bool) -> None:
    """Do the job, then print and write what came out."""
    from tied.study.train.processes import Processes
    from tied.study.train.results import sentences, table, to_json, writing

    processes = Processes()
    count = f"{processes.count} process{'es' * (processes.count != 1)}"
    say(f"Training on {processes.device.type}, in {count}.")
    runs = _collect(job, processes)
    if not processes.are_led_from_here:
        return
    written = _write(job, runs)
    if as_json:
        print(json.dumps(to_json(job, runs), indent=2))
    else:
        show_table(table(runs))
        print("", *sentences(runs), *filter(None, [writing(runs[0])]), sep="\n")
    say(f"Written to {job.out}: {', '.join(path.name for path in written)}")


def _collect(job: Job, processes: Processes) -> list[Run]:
    from tied.study.progress import Progress
    from tied.study.train.results import table
    from tied.study.train.run import events

    runs: list[Run] = []
    try:
        with watching() as watch:
            for event in events(job, processes):
                if isinstance(event, Progress):
                    watch.update(event, table(runs))
                else:
                    runs.append(event)
    except KeyboardInterrupt as stop:
        if str(stop):
            stop.args = (f"Interrupted at {stop}; everything is saved. Go on with:\n{job.command()} --resume",)
        raise
    return runs


def _write(job: Job, runs: list[Run]) -> list[Path]:
    from tied.show.pictures import MissingPackageError as NoPictures
    from tied.study.train.results import write_pictures, write_results

    written = write_results(job, runs)
    try:
        return written + write_pictures(job, runs)
    except NoPictures as missing:
        say(str(missing))
        return written
