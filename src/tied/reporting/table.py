"""A table as a value, and its plain-text form.

Owns: the value, the split into blocks that fit a width, and the text. Must not print or know where cells
come from. Read next: `page.py` for the HTML form.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

Tone = Literal["plain", "good", "bad"]
GAP = "  "


@dataclass(frozen=True)
class Cell:
    """One cell: its text, and whether that text is good news, bad news or neither."""

    text: str
    tone: Tone = "plain"


@dataclass(frozen=True)
class Table:
    """Rows under headers.

    Attributes:
        headers: One per column; may hold line breaks.
        rows: Each as long as `headers`. The first column names the row and is left-aligned.
        notes: Sentences below the table.
        words: How many columns, from the first, hold words, which are left-aligned in HTML; the others hold figures.
    """

    headers: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    words: int = 1

    def widths(self) -> list[int]:
        """Return the width of each column in characters."""
        return [
            max(len(text) for text in (*header.split("\n"), *(row[index].text for row in self.rows)))
            for index, header in enumerate(self.headers)
        ]

    def take(self, indices: Sequence[int]) -> Table:
        """Return the table with these columns only."""
        rows = tuple(tuple(row[index] for index in indices) for row in self.rows)
        return replace(self, headers=tuple(self.headers[index] for index in indices), rows=rows)


def fit(table: Table, width: int) -> list[Table]:
    """Split a table by columns into blocks that are at most `width` characters wide.

    Every block repeats the first column; the last one carries the notes. A block holds at least one
    further column, even where that is too wide.

    Example:
        >>> wide = Table(("name", "first", "second"), ((Cell("x"), Cell("1"), Cell("2")),))
        >>> [block.headers for block in fit(wide, 12)]
        [('name', 'first'), ('name', 'second')]
    """
    widths = table.widths()
    groups: list[list[int]] = [[]]
    for index in range(1, len(widths)):
        wanted = [0, *groups[-1], index]
        if groups[-1] and sum(widths[i] for i in wanted) + len(GAP) * (len(wanted) - 1) > width:
            groups.append([])
        groups[-1].append(index)
    blocks = [table.take([0, *group]) for group in groups]
    return [*(replace(block, notes=()) for block in blocks[:-1]), blocks[-1]]


def to_text(table: Table, width: int = 100) -> str:
    """Write a table as plain text, in blocks where it is wider than `width` characters.

    Example:
        >>> print(to_text(Table(("name", "count"), ((Cell("x"), Cell("12")),), ("One row.",))))
        name  count
        -----------
        x        12
        <BLANKLINE>
        One row.
    """
    texts = ["\n".join(_lines(block)) for block in fit(table, width)]
    notes = "\n".join(textwrap.fill(note, width, subsequent_indent="  ") for note in table.notes)
    return "\n\n".join([*texts, *([notes] if notes else [])])


def _lines(table: Table) -> Iterator[str]:
    widths = table.widths()
    headers = [header.split("\n") for header in table.headers]
    height = max(len(header) for header in headers)
    padded = [[""] * (height - len(header)) + header for header in headers]
    yield from (_line(level, widths) for level in zip(*padded, strict=True))
    yield "-" * (sum(widths) + len(GAP) * (len(widths) - 1))
    yield from (_line([cell.text for cell in row], widths) for row in table.rows)


def _line(texts: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = zip(texts, widths, strict=True)
    aligned = [first[0].ljust(first[1]), *(text.rjust(width) for text, width in others)]
    return GAP.join(aligned).rstrip()
