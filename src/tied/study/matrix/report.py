"""The outcomes of a run as tables, sentences, a page and JSON, and one cell explained.

Owns: which columns and counts there are, and the words. Must not run or lay out anything.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from textwrap import indent
from typing import Any

import torch

from tied.reporting.page import Code, Heading, Paragraph, Part, page
from tied.reporting.table import Cell, Table, Tone
from tied.study.matrix.kinds import KINDS, Kind
from tied.study.matrix.known_results import Difference, Expectation
from tied.study.matrix.row import STATES, Outcome, Row, State
from tied.study.run_record import RunRecord

TONES: Mapping[State, Tone] = {"ok": "good", "refused": "good", "wrong": "bad", "error": "plain"}
COUNTED: Mapping[str, tuple[State, ...]] = {
    "ok": ("ok", "refused"),
    "same": ("same",),
    "wrong": ("wrong",),
    "error": ("error",),
    "does not apply": ("-",),
    "not run": ("not run",),
}


@dataclass
class Record(RunRecord[Outcome]):
    """The outcomes so far.

    Attributes:
        rows: What is run, in the order of the table.
        expectation: What is known of torch.
        outcomes: By kind, row and recipe.
    """

    rows: tuple[Row, ...]
    expectation: Expectation
    outcomes: dict[tuple[str, str, str], Outcome] = field(default_factory=dict[tuple[str, str, str], Outcome])

    def add(self, found: Outcome) -> None:
        """Keep one outcome."""
        self.outcomes[found.kind, found.row, found.recipe] = found

    def in_order(self) -> list[Outcome]:
        """Return the outcomes in the order of the table."""
        found = (
            self.outcomes.get((kind.name, row.name, column.key))
            for kind in KINDS.values()
            for row in self.rows
            for column in kind.columns
        )
        return [outcome for outcome in found if outcome]

    def kinds(self) -> list[Kind]:
        """Return the kinds of tie of which something is known."""
        seen = {kind for kind, _, _ in self.outcomes}
        return [kind for kind in KINDS.values() if kind.name in seen]

    def wrong_of_ours(self) -> list[Outcome]:
        """Return the cells in which `tied` itself is wrong without a word."""
        ours = {(kind.name, column.key) for kind in KINDS.values() for column in kind.columns if column.ours}
        return [one for one in self.in_order() if one.state == "wrong" and (one.kind, one.recipe) in ours]

    def differences(self) -> list[Difference]:
        """Return the cells that are not as on the known torch."""
        return self.expectation.differences(self.in_order())

    def count(self, kind: str, recipe: str, states: Iterable[State]) -> int:
        """Count the cells of a recipe that are in one of the states."""
        mine = (one for one in self.outcomes.values() if (one.kind, one.recipe) == (kind, recipe))
        return sum(one.state in states for one in mine)

    def to_json(self) -> dict[str, Any]:
        """Return plain values, ready for `json.dumps`."""
        return {
            **super().to_json(),
            "states": dict(STATES),
            "rows": [{"name": row.name, "theme": row.theme, "what": row.what} for row in self.rows],
            "recipes": [_recipe(self, kind, index) for kind in self.kinds() for index in range(len(kind.columns))],
            "cells": [outcome.to_json() for outcome in self.in_order()],
            "expectation": {
                "torch": self.expectation.torch,
                "is_of_this_torch": self.expectation.is_of_this_torch,
                "differences": [
                    {"kind": d.outcome.kind, "row": d.outcome.row, "recipe": d.outcome.recipe}
                    | {"expected": d.expected, "got": d.outcome.state}
                    for d in self.differences()
                ],
            },
        }


def _recipe(record: Record, kind: Kind, index: int) -> dict[str, Any]:
    column = kind.columns[index]
    counts = {word: record.count(kind.name, column.key, states) for word, states in COUNTED.items()}
    return {"kind": kind.name, "key": column.key, "name": column.name, "line": column.line, "counts": counts}


# -- the table -----------------------------------------------------------------------------------------


def table(record: Record, kind: Kind, *, last: int | None = None) -> Table:
    """Make the table of a kind of tie: rows by theme, and counts; or only the `last` rows that have outcomes."""
    rows = [row for row in record.rows if any((kind.name, row.name, c.key) in record.outcomes for c in kind.columns)]
    headers = (f"{kind.name} tie", *(column.key for column in kind.columns))
    if last is not None:
        return Table(headers, tuple(_row(record, kind, row) for row in rows[-last:]))
    return Table(headers, (*_themed(record, kind, rows), *_counts(record, kind)), tuple(_notes(record, kind)))


def _themed(record: Record, kind: Kind, rows: list[Row]) -> Iterator[tuple[Cell, ...]]:
    theme = ""
    for row in rows:
        if row.theme != theme:
            theme = row.theme
            yield _heading(theme, kind)
        yield _row(record, kind, row)


def _heading(text: str, kind: Kind) -> tuple[Cell, ...]:
    return Cell(f"{text}:"), *[Cell("")] * len(kind.columns)


def _row(record: Record, kind: Kind, row: Row) -> tuple[Cell, ...]:
    found = [record.outcomes.get((kind.name, row.name, column.key)) for column in kind.columns]
    return Cell(f"  {row.name}"), *(
        Cell(one.state, TONES.get(one.state, "plain")) if one else Cell("") for one in found
    )


def _counts(record: Record, kind: Kind) -> Iterator[tuple[Cell, ...]]:
    yield _heading("counts", kind)
    for word, states in COUNTED.items():
        counts = [record.count(kind.name, column.key, states) for column in kind.columns]
        if any(counts):
            yield Cell(f"  {word}"), *(_count(word, count) for count in counts)


def _count(word: str, count: int) -> Cell:
    return Cell(str(count), "bad" if word == "wrong" and count else "plain")


def _notes(record: Record, kind: Kind) -> Iterator[str]:
    seen = {outcome.state for outcome in record.outcomes.values() if outcome.kind == kind.name}
    yield from (f"{state}: {meaning}." for state, meaning in STATES.items() if state in seen)
    yield from (f"{column.key}: {column.line}" for column in kind.columns)


# -- words ---------------------------------------------------------------------------------------------


def sentences(record: Record) -> list[str]:
    """Say how the run compares with what is known of torch, and where `tied` itself is wrong."""
    return [*_compared(record), *_ours(record)]


def _compared(record: Record) -> Iterator[str]:
    expected, found = record.expectation, record.differences()
    if not expected.is_of_this_torch:
        yield f"Your torch is {torch.__version__}; the nearest that was measured before is {expected.torch}."
    if not found:
        yield f"Every cell is as expected from torch {expected.torch}."
        return
    noun = "cell differs" if len(found) == 1 else "cells differ"
    yield f"{len(found)} {noun} from what was measured on torch {expected.torch}:"
    yield from (f"  {difference}" for difference in found)
    differing = {difference.outcome.row for difference in found}
    yield from (f"  {row.name}: {row.since}." for row in record.rows if row.since and row.name in differing)


def _ours(record: Record) -> Iterator[str]:
    yield from (f"tied is wrong in {one.row} ({one.kind}): {one.reason}" for one in record.wrong_of_ours())


def explanation(record: Record, outcome: Outcome) -> str:
    """Explain one cell: what the row does, what the recipe is, what came out, and why."""
    row = next(row for row in record.rows if row.name == outcome.row)
    column = KINDS[outcome.kind].column(outcome.recipe)
    known = record.expectation.state(outcome)
    lines = [f"  {line}" for line in (outcome.details or [outcome.reason])]
    return "\n".join(
        [
            f"{outcome.row} / {outcome.recipe}, {outcome.kind} tie: {outcome.state}",
            f"  ({STATES[outcome.state]}; {outcome.seconds:.2f} s)",
            *([f"  {row.refusal}:"] if outcome.state == "refused" else []),
            *lines,
            f"  expected from torch {record.expectation.torch}: {known or 'nothing is known'}",
            *([f"  {row.since}"] if row.since else []),
            f"\nThe recipe: {column.name}\n",
            indent(_source(column.build), "  "),
            "\nThe row:\n",
            indent(_source(row.run), "  "),
            "\nThe law, for rows that return a model: tied.study.matrix.law",
        ]
    )


def _source(thing: Any) -> str:
    try:
        return inspect.getsource(thing).rstrip()
    except (OSError, TypeError):
        return f"(no source: {thing!r})"


# -- the page ------------------------------------------------------------------------------------------


def report(record: Record) -> str:
    """Write the run as one self-contained HTML page."""
    return page("What everyday operations leave of a tie", _parts(record))


def _parts(record: Record) -> Iterator[Part]:
    end = " Interrupted: this is what was finished." if record.interrupted else ""
    count = len(record.outcomes)
    yield Paragraph(f"torch {torch.__version__}, {count} cells in {record.elapsed_seconds:.0f} s.{end}")
    yield from (Paragraph(sentence) for sentence in sentences(record))
    for kind in record.kinds():
        yield Heading(f"The {kind.name} tie")
        yield table(record, kind)
    yield Heading("Why")
    yield _reasons(record)
    yield Heading("What the rows do")
    yield Code("\n\n".join(f"{row.name}\n{indent(row.what, '    ')}" for row in record.rows))


def _reasons(record: Record) -> Code:
    told = [one for one in record.in_order() if one.reason]
    return Code("\n".join(f"{one.row} / {one.recipe}, {one.kind}: {one.state}\n    {one.reason}" for one in told))
