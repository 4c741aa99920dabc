"""`tied proofs`: what the library promises, measured here and now, each beside a control that must fail.

Owns: the options, the words around the results, and the exit status. Must not judge: `tied.study.proofs` does.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from tied.cli.terminal import say, show_table, watching

if TYPE_CHECKING:
    from tied.study.proofs.report import Record

FINDINGS, WRONG_USE, INTERRUPTED = 1, 2, 130
SHOWN_WHILE_RUNNING = 12


def proofs(
    *,
    only: Annotated[str, typer.Option(metavar="GLOB", help="Proofs to run, by name: pca, 'd*'.")] = "*",
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON only.")] = False,
) -> None:
    """Prove what the library promises, by measurement.

    Each claim has a figure, a band in which it must lie, and a control: the same figure measured where the claim
    is false, which must lie outside the band. Everything is measured in this run, against plain torch or numpy.

    Exit status: 0, or 1 if a band is missed or a control does not fail, 2 for wrong use, 130 if interrupted.
    """
    try:
        record = _run(only)
    except KeyboardInterrupt:
        say("Interrupted before anything was measured.")
        raise typer.Exit(INTERRUPTED) from None
    _print(record, as_json=as_json)
    if record.interrupted:
        say(f"Interrupted. Finished: {len(record.outcomes)} claims.")
        raise typer.Exit(INTERRUPTED)
    if record.missed():
        raise typer.Exit(FINDINGS)


def _run(only: str) -> Record:
    """Measure until done or interrupted."""
    say("Loading torch ...")
    from tied.errors import AddressError
    from tied.study.proofs.catalogue import chosen
    from tied.study.proofs.report import Record, table
    from tied.study.proofs.run import run

    try:
        record = Record(chosen(only))
    except AddressError as error:
        say(f"tied proofs: {error.problem} {error.fix}")
        raise typer.Exit(WRONG_USE) from None
    with watching() as watch:
        record.collect(run(record.proofs), lambda step: watch.update(step, table(record, last=SHOWN_WHILE_RUNNING)))
    return record


def _print(record: Record, *, as_json: bool) -> None:
    from tied.study.proofs.report import sentences, table

    if as_json:
        print(json.dumps(record.to_json(), indent=2))
        return
    show_table(table(record))
    print("", *sentences(record), sep="\n")
