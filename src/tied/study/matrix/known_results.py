"""What is known of torch's versions: the states that cells had there, and how this run differs.

Owns: the files `study/data/matrix-torch-*.json`. Must not run anything. Read next: `report.py`.

The files are written by `pytest tests/study/matrix/test_whole.py --update-golden`, which runs the whole matrix.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources

import torch

from tied.study.matrix.row import Outcome

States = Mapping[str, Mapping[str, Mapping[str, str]]]
"""State by kind, row and recipe."""


@dataclass(frozen=True)
class Difference:
    """A cell that is not as it was on a known version of torch."""

    outcome: Outcome
    expected: str

    def __str__(self) -> str:
        """Return one line."""
        where = f"{self.outcome.row} / {self.outcome.recipe} ({self.outcome.kind})"
        return f"{where}: expected {self.expected}, got {self.outcome.state}"


@dataclass(frozen=True)
class Expectation:
    """The states that were measured on one version of torch.

    Attributes:
        torch: That version.
        cells: State by kind, row and recipe.
    """

    torch: str
    cells: States

    @property
    def is_of_this_torch(self) -> bool:
        """Whether it was measured on the minor version that is installed."""
        return _place(self.torch) == _place(torch.__version__)

    def state(self, outcome: Outcome) -> str | None:
        """Return the expected state of a cell; None where none is known."""
        return self.cells.get(outcome.kind, {}).get(outcome.row, {}).get(outcome.recipe)

    def differences(self, outcomes: Iterable[Outcome]) -> list[Difference]:
        """Return the cells that are not as expected; those that were not run, or are not known, are no news."""
        known = [(outcome, self.state(outcome)) for outcome in outcomes if outcome.state != "not run"]
        return [Difference(outcome, state) for outcome, state in known if state is not None and state != outcome.state]


def release(version: str) -> tuple[int, ...]:
    """Return the numbers of a version.

    Example:
        >>> release("2.13.0+cpu")
        (2, 13, 0)
    """
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()


def known() -> list[Expectation]:
    """Read all expectations, the oldest torch first."""
    folder = resources.files("tied.study") / "data"
    files = [file for file in folder.iterdir() if re.fullmatch(r"matrix-torch-.*\.json", file.name)]
    read = [Expectation(**json.loads(file.read_text(encoding="utf-8"))) for file in files]
    return sorted(read, key=lambda expectation: release(expectation.torch))


def nearest() -> Expectation:
    """Return the expectation of the installed torch, or else of the nearest version; of two, the older."""
    return min(known(), key=lambda each: abs(_place(each.torch) - _place(torch.__version__)))


def _place(version: str) -> int:
    """Return where a version stands among all, its last number aside."""
    major, minor, *_ = (*release(version), 0, 0)
    return 1000 * major + minor


def to_text(outcomes: Iterable[Outcome], version: str, before: Expectation | None = None) -> str:
    """Write the states of a run as a file of expectations, one line per row.

    What was not run keeps the state that it had `before`, on the same version.
    """
    cells: dict[str, dict[str, dict[str, str]]] = {}
    for outcome in outcomes:
        state = outcome.state if outcome.state != "not run" else before and before.state(outcome)
        if state:
            cells.setdefault(outcome.kind, {}).setdefault(outcome.row, {})[outcome.recipe] = state
    body = ",\n".join(f' "{kind}": {{\n{_rows(rows)}\n }}' for kind, rows in cells.items())
    return f'{{"torch": "{version}", "cells": {{\n{body}\n}}}}\n'


def _rows(rows: Mapping[str, Mapping[str, str]]) -> str:
    return ",\n".join(f'  "{row}": {json.dumps(states)}' for row, states in rows.items())
