"""The run of the matrix: which cells, in what order, and their outcomes one by one.

Owns: the choice of rows and recipes by name, and the client of the server. Must not print.
Read next: `cell_server.py`, where cells run; `report.py`, what is made of outcomes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from importlib import import_module
from importlib.util import find_spec
from typing import IO, TypeVar, cast

from tied.errors import AddressError, nearest
from tied.study.matrix import cell_server, rows
from tied.study.matrix.kinds import KINDS, Column, Kind
from tied.study.matrix.row import Outcome, Row
from tied.study.progress import Progress

REGISTRY = rows.__name__
JOBS = 2
LIMIT_SECONDS = 60.0
SERVER = f"from {cell_server.__name__} import main; main()"
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")

Event = Progress | Outcome
Found = TypeVar("Found")


@dataclass(frozen=True)
class Cell:
    """One recipe in one row."""

    kind: Kind
    row: Row
    column: Column


@dataclass(frozen=True)
class Plan:
    """What to run.

    Attributes:
        kinds: Names of the kinds of tie.
        rows: A pattern of row names, or of a theme.
        recipes: Keys of the recipes; empty for all.
        jobs: How many cells at a time.
        limit_seconds: How long a cell may take.
        registry: Module whose `ROWS` are the rows.
    """

    kinds: tuple[str, ...] = ("transposed",)
    rows: str = "*"
    recipes: tuple[str, ...] = ()
    jobs: int = JOBS
    limit_seconds: float = LIMIT_SECONDS
    registry: str = REGISTRY

    def all_rows(self) -> tuple[Row, ...]:
        """Return the rows that there are."""
        return import_module(self.registry).ROWS

    def chosen_rows(self) -> tuple[Row, ...]:
        """Return the rows that match the pattern, by name or by theme.

        Raises:
            AddressError: none does.
        """
        known = self.all_rows()
        chosen = tuple(row for row in known if fnmatchcase(row.name, self.rows) or fnmatchcase(row.theme, self.rows))
        return chosen or (named_row(self.rows, known),)

    def cells(self) -> list[Cell]:
        """Return the cells, row by row."""
        kinds, rows = [KINDS[name] for name in self.kinds], self.chosen_rows()
        return [
            Cell(kind, row, column)
            for kind in kinds
            for row in rows
            for column in kind.columns
            if not self.recipes or column.key in self.recipes
        ]


def named_row(name: str, rows: Sequence[Row]) -> Row:
    """Return the row of that name.

    Raises:
        AddressError: there is none; the message names the nearest.
    """
    return _named(name, {row.name: row for row in rows}, "row")


def named_column(name: str, kind: Kind) -> Column:
    """Return the recipe of that key, or of the name that the demo uses.

    Raises:
        AddressError: there is none; the message names the nearest.
    """
    known = {column.key: column for column in kind.columns}
    return _named(name, {**known, **{column.name: column for column in kind.columns}}, "recipe")


def keys_of(name: str, kinds: Sequence[str]) -> tuple[str, ...]:
    """Return the key of the recipe of that name, for each kind of tie.

    Raises:
        AddressError: one of them has no such recipe.
    """
    return tuple(named_column(name, KINDS[kind]).key for kind in kinds)


def _named(name: str, known: dict[str, Found], what: str) -> Found:
    if name in known:
        return known[name]
    near = nearest(name, known)
    raise AddressError(
        f"'{name}' is no {what} of the matrix.",
        found=f"{what} '{name}'",
        expected=f"one of {', '.join(known)}",
        fix=f"Did you mean {near}?" if near else f"There are: {', '.join(known)}",
    )


def run(plan: Plan) -> Iterator[Event]:
    """Run the cells of a plan, each in a process of its own, two at a time.

    Yields:
        Each `Outcome` as soon as it is known, and after it the `Progress`.

    Raises:
        AddressError: the plan names no row.
        RuntimeError: the process that runs the cells could not be started, or died.
    """
    cells = plan.cells()
    able = [cell for cell in cells if not cell.row.needs or find_spec(cell.row.needs)]
    tally = _Tally(cells)
    for cell in cells:
        if cell not in able:
            yield from tally.count(_not_run(cell))
    if able:
        with _server(plan, able) as lines:
            for line in lines:
                yield from tally.count(Outcome.from_json(json.loads(line)))


class _Tally:
    """How far the run is."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        self.left = Counter((cell.kind.name, cell.row.name) for cell in cells)
        self.states: dict[tuple[str, str], Counter[str]] = {}
        self.total = len(cells)

    def count(self, outcome: Outcome) -> Iterator[Event]:
        """Yield the outcome and the progress; the last cell of a row is a milestone."""
        row = outcome.kind, outcome.row
        self.left[row] -= 1
        states = self.states.setdefault(row, Counter())
        states[outcome.state] += 1
        ended = self.left[row] == 0
        summary = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
        detail = f"{outcome.row}: {summary}" if ended else f"{outcome.row} / {outcome.recipe}: {outcome.state}"
        yield outcome
        yield Progress("cells", self.total - self.left.total(), self.total, detail, milestone=ended)


def _not_run(cell: Cell) -> Outcome:
    return Outcome(cell.kind.name, cell.row.name, cell.column.key, "not run", f"needs {cell.row.needs}")


@contextmanager
def _server(plan: Plan, cells: Sequence[Cell]) -> Generator[Iterator[bytes]]:
    """Start the server with its request, and end it, however this ends."""
    names = [[cell.kind.name, cell.row.name, cell.column.key] for cell in cells]
    request = cell_server.Request(names, plan.registry, plan.jobs, plan.limit_seconds)
    with tempfile.TemporaryFile() as said, _process(said) as process:
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # if it died, its answers will be missing
            process.stdin.write(json.dumps(asdict(request)).encode() + b"\n")
            process.stdin.flush()
        yield _answers(process, said, len(cells))


def _answers(process: subprocess.Popen[bytes], said: IO[bytes], count: int) -> Iterator[bytes]:
    lines = cast(IO[bytes], process.stdout)
    for _ in range(count):
        line = lines.readline()
        if not line:
            process.wait(timeout=5)
            raise RuntimeError(f"the process that runs the cells ended early: {_last_line(said) or 'it said nothing'}")
        yield line


def _last_line(said: IO[bytes]) -> str:
    said.seek(0)
    return said.read().decode(errors="replace").strip().rpartition("\n")[2]


@contextmanager
def _process(said: IO[bytes]) -> Generator[subprocess.Popen[bytes]]:
    # A session of its own: Ctrl-C reaches the caller only, who then closes the server's input.
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=said,
        env={**os.environ, **ONE_THREAD, "PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        start_new_session=True,
    )
    try:
        yield process
    finally:
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):
            process.stdin.close()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
