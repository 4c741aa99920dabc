"""The outcomes of a run as a table, as sentences and as JSON.

Owns: which columns there are, and the words. Must not measure or lay out.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from tied.reporting.table import Cell, Table
from tied.study.proofs.proof import Finding, Outcome, Proof

FORMAT_VERSION = 1
HEADERS = ("claim", "measured", "band", "verdict", "s")
BLANK = Cell("")


@dataclass
class Record:
    """The outcomes so far.

    Attributes:
        proofs: What is run.
        outcomes: In the order of the run.
        interrupted: Whether the run was stopped.
        elapsed_seconds: How long it took.
    """

    proofs: tuple[Proof, ...]
    outcomes: list[Outcome] = field(default_factory=list[Outcome])
    interrupted: bool = False
    elapsed_seconds: float = 0.0

    def add(self, outcome: Outcome) -> None:
        """Keep one outcome."""
        self.outcomes.append(outcome)

    def missed(self) -> list[Outcome]:
        """Return the outcomes that prove nothing: out of the band, or with a control inside it."""
        return [outcome for outcome in self.outcomes if not outcome.finding.proven]

    def to_json(self) -> dict[str, Any]:
        """Return plain values, ready for `json.dumps`."""
        return {
            "format_version": FORMAT_VERSION,
            "versions": {"torch": torch.__version__, "python": platform.python_version()},
            "interrupted": self.interrupted,
            "elapsed_seconds": self.elapsed_seconds,
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
        finding = outcome.finding
        time = Cell(f"{outcome.seconds:.2f}")
        yield (
            Cell(f"  {finding.claim}"),
            Cell(_figure(finding.measured)),
            Cell(str(finding.band)),
            _verdict(finding),
            time,
        )
        yield (
            Cell(f"    control: {finding.control.what}"),
            Cell(_figure(finding.control.measured)),
            BLANK,
            _fate(finding),
            BLANK,
        )


def _figure(figure: float) -> str:
    return f"{figure:.2g}"


def _verdict(finding: Finding) -> Cell:
    return Cell("holds", "good") if finding.claim_holds else Cell("MISSED", "bad")


def _fate(finding: Finding) -> Cell:
    return Cell("fails", "good") if finding.control_fails else Cell("DOES NOT FAIL", "bad")


def sentences(record: Record) -> list[str]:
    """Say what was proven, what was not, and the further facts."""
    proven, count = len(record.outcomes) - len(record.missed()), len(record.outcomes)
    summary = f"{proven} of {count} claims hold and have a control that fails; {record.elapsed_seconds:.0f} s."
    notes = [f"{outcome.proof}: {outcome.finding.note}" for outcome in record.outcomes if outcome.finding.note]
    return [*notes, *(_complaint(outcome) for outcome in record.missed()), summary]


def _complaint(outcome: Outcome) -> str:
    finding = outcome.finding
    if not finding.claim_holds:
        return f"{outcome.proof}: {finding.claim}: measured {_figure(finding.measured)}, band {finding.band}."
    return f"{outcome.proof}: the control of '{finding.claim}' does not fail, so it proves nothing."
