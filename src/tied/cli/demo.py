"""`tied demo`: every way to tie an autoencoder, measured and trained before the user's eyes.

Owns: the options, the words around the results, and what an interruption leaves behind.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tied.cli.terminal import say, show_table, watching

if TYPE_CHECKING:
    from tied.study.demo.record import Record

INTERRUPTED = 130
WRONG_USE = 2


def demo(
    *,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer epochs and seeds: half a minute.")] = False,
    seed: Annotated[int, typer.Option(help="First seed of starts, splits and batch orders.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for results, report and pictures.")] = Path("tied-demo"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON only.")] = False,
) -> None:
    """Compare the ways to tie an autoencoder, on real digits.

    Trains it in every way that people tie its weights, from the same start. Shows torch's error for the raw
    assignment; then, for each recipe, the parameters counted, the gradient, 20 AdamW steps against one
    parameter written by hand, what survives copying, casting and loading, the held-out error and the time
    per step. Every figure is measured in this run.
    """
    if seed < 0:
        raise _wrong(f"--seed must be 0 or more, not {seed}")
    try:
        record = _run(quick, seed, out)
    except KeyboardInterrupt:
        say("Interrupted before anything was measured; nothing was written.")
        raise typer.Exit(INTERRUPTED) from None
    try:
        _finish(record, out, as_json=as_json)
    except KeyboardInterrupt:
        say(f"Interrupted while writing; {out} holds only what was written before.")
        raise typer.Exit(INTERRUPTED) from None
    if record.interrupted:
        raise typer.Exit(INTERRUPTED)


def _wrong(problem: str) -> typer.Exit:
    say(f"tied demo: {problem}")
    return typer.Exit(WRONG_USE)


def _run(quick: bool, seed: int, out: Path) -> Record:
    """Measure until done or interrupted."""
    say("Loading torch ...")
    from tied.study.demo.record import Plan, Record
    from tied.study.demo.report import results
    from tied.study.demo.run import demo as events
    from tied.study.output_folder import prepare

    try:
        prepare(out)
    except OSError as error:
        raise _wrong(f"--out {out}: {error.strerror or error}") from None
    record = Record(Plan.quick(seed) if quick else Plan(seed))
    with watching() as watch:
        record.collect(events(record.plan), lambda step: watch.update(step, results(record)))
    return record


def _finish(record: Record, out: Path, *, as_json: bool) -> None:
    """Write what there is, print it, and say what is missing."""
    from tied.study.demo.report import results, sentences, write_data

    written = write_data(record, out)
    if as_json:
        print(json.dumps(record.to_json(), indent=2))
    else:
        show_table(results(record))
        print("", *sentences(record), sep="\n")
    written += _pictures(record, out)
    if record.interrupted:
        say(f"Interrupted. {_finished(record)}")
    say(f"Written to {out}: {', '.join(path.name for path in written)}")


def _pictures(record: Record, out: Path) -> list[Path]:
    from tied.show.pictures import MissingPackageError
    from tied.study.demo.report import write_pictures

    try:
        return write_pictures(record, out)
    except MissingPackageError as missing:
        say(str(missing))
    except KeyboardInterrupt:
        record.interrupted = True
        say("Interrupted while drawing; the pictures are not complete.")
    return []


def _finished(record: Record) -> str:
    from tied.study.demo.run import jobs

    trained, planned = sum(len(runs) for runs in record.runs.values()), len(jobs(record.plan))
    return f"Finished: {len(record.properties)} recipes checked, {trained} of {planned} models trained."
