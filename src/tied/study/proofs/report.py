"""The outcomes of a run as a table, as sentences and as JSON.

Owns: which columns there are, and the words. Must not measure or lay out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tied.reporting.table import Cell, Table
from tied.study.proofs.proof import Outcome, Proof
from tied.study.run_record import RunRecord

HEADERS = ("claim", "measured", "band", "verdict", "s")
BLANK = Cell("")


@dataclass
class Record(RunRecord[Outcome]):
    """The outcomes so far.

    Attributes:
        proofs: What is run.
        outcomes: In the order of the run.
    """

    proofs: tuple[Proof, ...]
    outcomes: list[Outcome] = field(default_factory=list[Outcome])

    def add(self, found: Outcome) -> None:
        """Keep one outcome."""
        self.outcomes.append(found)

    def missed(self) -> list[Outcome]:
        """Return the outcomes that prove nothing: out of the band, or with a control inside it."""
        return [outcome for outcome in self.outcomes if not outcome.finding.proven]

    def to_json(self) -> dict[str, Any]:
        """Return plain values, ready for `json.dumps`."""
        return {
            **super().to_json(),
            "proven": not self.interrupted and not self.missed(),
            "proofs": [{"name": proof.name, "title": proof.title, "source": proof.source} for proof in self.proofs],
            "findings": [outcome.to_json() for outcome in self.outcomes],
        }


def table(record: Record, last: int | None = None) -> Table:
    """Make the table: for each proof its title, for each claim a row and its control's row.

    Args:
        record: The outcomes.
        last: How many of the last rows to show; all where not given.
    """
    rows = [row for proof in record.proofs for row in _rows(record, proof)]
    return Table(HEADERS, tuple(rows if last is None else rows[-last:]))


def _rows(record: Record, proof: Proof) -> Iterator[tuple[Cell, ...]]:
    mine = [outcome for outcome in record.outcomes if outcome.proof == proof.name]
    if mine:
        yield Cell(f"{proof.name}: {proof.title}"), *[BLANK] * (len(HEADERS) - 1)
    for outcome in mine:
        one, control = outcome.finding, outcome.finding.control
        verdict = Cell("holds", "good") if one.claim_holds else Cell("MISSED", "bad")
        fate = Cell("fails", "good") if one.control_fails else Cell("DOES NOT FAIL", "bad")
        time = Cell(f"{outcome.seconds:.2f}")
        yield Cell(f"  {one.claim}"), Cell(_figure(one.measured)), Cell(str(one.band)), verdict, time
        yield Cell(f"    control: {control.what}"), Cell(_figure(control.measured)), BLANK, fate, BLANK


def _figure(figure: float) -> str:
    return f"{figure:.2g}"


def sentences(record: Record) -> list[str]:
    """Say what was proven, what was not, and the further facts."""
    proven, count = len(record.outcomes) - len(record.missed()), len(record.outcomes)
    summary = f"{proven} of {count} claims hold and have a control that fails; {record.elapsed_seconds:.0f} s."
    notes = [f"{outcome.proof}: {outcome.finding.note}" for outcome in record.outcomes if outcome.finding.note]
    return [*notes, *(_complaint(outcome) for outcome in record.missed()), summary]


def _complaint(outcome: Outcome) -> str:
    measurement = outcome.finding
    if not measurement.claim_holds:
        return (
            f"{outcome.proof}: {measurement.claim}: measured {_figure(measurement.measured)}, band {measurement.band}."
        )
    return f"{outcome.proof}: the control of '{measurement.claim}' does not fail, so it proves nothing."
