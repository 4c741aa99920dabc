"""Tables of numbers: .csv, .tsv and .parquet.

Owns: the reading, and the errors that name column and line. Must not scale or split. Read next: `samples.py`.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tied.study.train.errors import DataError, MissingPackageError

LABELS = frozenset({"label", "labels", "class", "target"})
DELIMITERS = (",", ";", "\t")


@dataclass(frozen=True)
class Table:
    """Columns of numbers, and a label for each row where a column is called so.

    Shapes:
        values: `(rows, columns)` in float64.
    """

    values: np.ndarray
    labels: list[str]


def read_csv(path: Path) -> Table:
    """Read a table in which cells are separated by commas, semicolons or tabs, whichever the first line has most of.

    The first row is a header if one of its cells is no number. Empty lines are skipped.

    Raises:
        DataError: an empty file, a row of another length, or a cell that is no number.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise _wrong(path, "is no text in UTF-8.", str(error), "a text file", "save it as CSV in UTF-8") from None
    lines = text.splitlines()
    first = next((line for line in lines if line.strip()), "")
    delimiter = max(DELIMITERS, key=first.count)
    rows = [(number, row) for number, row in _rows(path, lines, delimiter) if any(cell.strip() for cell in row)]
    if not rows:
        raise _wrong(path, "is empty.", "no row", "a row of numbers for each sample", "check how it was written")
    header = _header(rows[0][1])
    return _table(path, header, rows[1:] if header else rows)


def _rows(path: Path, lines: Sequence[str], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(lines, delimiter=delimiter)
    try:
        yield from ((reader.line_num, row) for row in reader)
    except csv.Error as error:
        raise _wrong(path, "is no table.", str(error), "cells separated by commas", "save it as CSV") from None


def _header(row: Sequence[str]) -> list[str]:
    return [] if all(_is_number(cell) for cell in row) else [cell.strip() for cell in row]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _table(path: Path, header: list[str], rows: list[tuple[int, list[str]]]) -> Table:
    names = header or [str(number) for number in range(1, len(rows[0][1]) + 1 if rows else 1)]
    label = next((index for index, name in enumerate(names) if name.lower() in LABELS), None)
    kept = [index for index in range(len(names)) if index != label]
    values = np.empty((len(rows), len(kept)))
    for place, (line, row) in enumerate(rows):
        if len(row) != len(names):
            raise _wrong(
                path,
                f"has rows of different lengths: line {line}.",
                f"{len(row)} cells",
                f"{len(names)}, as above it",
                "mend that line; are texts with commas in quotes?",
            )
        values[place] = [_number(path, line, names[index], row[index]) for index in kept]
    return Table(values, [] if label is None else [row[label].strip() for _, row in rows])


def _number(path: Path, line: int, column: str, cell: str) -> float:
    if not cell.strip() or (_is_number(cell) and math.isnan(float(cell))):
        raise _not_numeric(path, column, f"a gap in line {line}", "fill the gap, or drop the row or the column")
    if not _is_number(cell):
        found = f"'{cell.strip()[:40]}' in line {line}"
        raise _not_numeric(path, column, found, "drop the column, or call it 'label' if it names the sample's class")
    return float(cell)


def read_parquet(path: Path) -> Table:
    """Read a parquet file.

    Raises:
        DataError: it is no parquet file, or has a column that is not numeric or has gaps.
        MissingPackageError: pyarrow is not installed.
    """
    try:
        from pyarrow import ArrowException, parquet  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise MissingPackageError("Parquet files need pyarrow: pip install pyarrow") from None
    try:
        read = parquet.read_table(path)
        columns = {name: read.column(name).to_numpy() for name in read.column_names}
    except ArrowException as error:
        found = str(error).split("\n")[0]
        raise _wrong(path, "is no parquet file.", found, "a table", "table.to_parquet('data.parquet')") from None
    label = next((name for name in columns if name.lower() in LABELS), "")
    labels = [str(name) for name in columns.pop(label, [])]
    for name, column in columns.items():
        _numeric(path, name, column)
    return Table(np.stack([np.asarray(column, np.float64) for column in columns.values()], 1), labels)


def _numeric(path: Path, name: str, column: np.ndarray) -> None:
    if column.dtype.kind not in "buif":
        fix = "drop the column, or call it 'label' if it names the sample's class"
        raise _not_numeric(path, name, f"values of type {type(column[0]).__name__ if len(column) else 'unknown'}", fix)
    gaps = np.flatnonzero(np.isnan(column)) if column.dtype.kind == "f" else np.empty(0, int)
    if len(gaps):
        found = f"{len(gaps)} gaps, the first in row {int(gaps[0]) + 1}"
        raise _not_numeric(path, name, found, "fill the gaps, or drop the rows or the column")


def _not_numeric(path: Path, column: str, found: str, fix: str) -> DataError:
    return _wrong(
        path, f"has a column that does not hold numbers only: '{column}'.", found, "a number in each cell", fix
    )


def _wrong(path: Path, problem: str, found: str, expected: str, fix: str) -> DataError:
    return DataError(f"{path} {problem}", found=found, expected=expected, fix=fix)
