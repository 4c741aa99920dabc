"""`tied matrix`: what everyday operations leave of a tie, for every recipe, on the torch that is installed.

Owns: the options, the words around the results, and the exit status. Must not judge: `tied.study.matrix` does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tied.cli.terminal import say, show_table, watching

if TYPE_CHECKING:
    from tied.study.matrix.report import Record
    from tied.study.matrix.run import Plan
    from tied.study.progress import Progress

FINDINGS, WRONG_USE, INTERRUPTED = 1, 2, 130
TIES = {"transposed": ("transposed",), "identity": ("identity",), "both": ("transposed", "identity")}
SHOWN_WHILE_RUNNING = 12


def matrix(
    *,
    rows: Annotated[str, typer.Option(metavar="GLOB", help="Rows to run, by name or theme: 'load*', source.")] = "*",
    tie: Annotated[str, typer.Option(metavar="KIND", help="transposed, identity or both.")] = "transposed",
    explain: Annotated[
        tuple[str, str] | None, typer.Option(metavar="ROW RECIPE", help="Run one cell, and say why it is as it is.")
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the results as a page, too.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON only.")] = False,
    limit: Annotated[float, typer.Option(metavar="SECONDS", help="How long one cell may take.")] = 60.0,
) -> None:
    """Show what everyday operations leave of a tie, for every way to tie.

    Recipes are columns, operations are rows. Each cell runs in a process of its own: the operation is done to a
    model that was tied by the recipe; then its training, in float64, is compared with one parameter written out
    by hand. At last the cells are compared with what was measured on known versions of torch.

    Exit status: 0, or 1 if `tied` itself is wrong anywhere without a word, 2 for wrong use, 130 if interrupted.
    """
    if tie not in TIES:
        raise _wrong(f"--tie must be transposed, identity or both, not '{tie}'")
    if limit <= 0:
        raise _wrong(f"--limit must be more than 0, not {limit:g}")
    try:
        record = _run(TIES[tie], explain or (rows, ""), html, limit)
        _finish(record, html, as_json=as_json, explain=explain is not None)
    except KeyboardInterrupt:
        say("Interrupted before anything was finished.")
        raise typer.Exit(INTERRUPTED) from None
    if record.interrupted:
        raise typer.Exit(INTERRUPTED)
    if record.wrong_of_ours():
        raise typer.Exit(FINDINGS)


def _wrong(problem: str) -> typer.Exit:
    say(f"tied matrix: {problem}")
    return typer.Exit(WRONG_USE)


def _run(kinds: tuple[str, ...], wanted: tuple[str, str], html: Path | None, limit: float) -> Record:
    """Run what was asked for until done or interrupted."""
    plan = _plan(kinds, wanted, limit)
    if html:
        _check(html)
    from tied.study.matrix import known_results
    from tied.study.matrix.cell_server import FORKS
    from tied.study.matrix.report import Record, table
    from tied.study.matrix.run import run

    if not FORKS:
        say("No safe fork on this system: every cell loads torch anew, which takes some seconds each.")
    record = Record(plan.chosen_rows(), known_results.nearest())

    def show(step: Progress) -> None:
        watch.update(step, table(record, record.kinds()[-1], last=SHOWN_WHILE_RUNNING))

    try:
        with watching() as watch:
            record.collect(run(plan), show)
    except RuntimeError as error:
        raise _wrong(str(error)) from None
    return record


def _plan(kinds: tuple[str, ...], wanted: tuple[str, str], limit: float) -> Plan:
    """Find by name what was asked for: a pattern of rows, or a row and a recipe."""
    say("Loading torch ...")
    from tied.errors import AddressError
    from tied.study.matrix.run import Plan, keys_of, named_row

    row, recipe = wanted
    try:
        plan = Plan(kinds, row, limit_seconds=limit, recipes=keys_of(recipe, kinds) if recipe else ())
        if recipe:
            named_row(row, plan.all_rows())
        plan.chosen_rows()
    except AddressError as error:
        raise _wrong(f"{error.problem} {error.fix}") from None
    return plan


def _check(html: Path) -> None:
    """Make sure, before the run, that the page can be written."""
    from tied.study.output_folder import prepare

    try:
        prepare(html.parent)
        if html.is_dir():
            raise IsADirectoryError(None, "Is a directory")
    except OSError as error:
        raise _wrong(f"--html {html}: {error.strerror or error}") from None


def _finish(record: Record, html: Path | None, *, as_json: bool, explain: bool) -> None:
    """Print what there is, write the page, and say what is missing."""
    from tied.study.matrix.report import explanation, report, sentences, table
    from tied.study.output_folder import write_whole

    if as_json:
        print(json.dumps(record.to_json(), indent=2))
    elif explain:
        print(*(explanation(record, outcome) for outcome in record.in_order()), sep="\n\n")
    else:
        for kind in record.kinds():
            show_table(table(record, kind))
            print()
        print(*sentences(record), sep="\n")
    if html:
        write_whole(html, report(record).encode())
        say(f"Written: {html}")
    if record.interrupted:
        say(f"Interrupted. Finished: {len(record.outcomes)} cells.")
