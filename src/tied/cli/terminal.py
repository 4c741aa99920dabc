"""How tables and progress look on a terminal, and without one.

Owns: every use of rich. Data goes to stdout, commentary to stderr; colors appear on a terminal only, and
never carry meaning alone.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress as Bars,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table as RichTable
from rich.text import Text

from tied.reporting.table import Cell, Table, fit, to_text

if TYPE_CHECKING:
    from tied.study.progress import Progress

STYLES = {"plain": "", "good": "green", "bad": "bold red"}
PLAIN_WIDTH = 100


def say(text: str) -> None:
    """Print a line of commentary to stderr."""
    print(text, file=sys.stderr, flush=True)


def show_table(table: Table) -> None:
    """Print a table to stdout: colored on a terminal, plain text elsewhere."""
    console = Console()
    if not console.is_terminal:
        print(to_text(table, PLAIN_WIDTH))
        return
    for block in fit(table, console.width):
        console.print(_rich_table(block), "", sep="\n")
    for note in table.notes:
        console.print(Text(note, style="dim"))


def _rich_table(table: Table) -> RichTable:
    made = RichTable(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for index, header in enumerate(table.headers):
        made.add_column(header, justify="right" if index else "left", no_wrap=True, vertical="bottom")
    for row in table.rows:
        made.add_row(*(_styled(cell) for cell in row))
    return made


def _styled(cell: Cell) -> Text:
    return Text(cell.text, style=STYLES[cell.tone])


class Lines:
    """Progress as plain lines, one per milestone, for logs and pipes."""

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, step: Progress, table: Table) -> None:
        """Print a milestone; the table so far is left out."""
        if step.milestone:
            say(f"{step.stage} {step.done} of {step.total}: {step.detail}")


class Screen:
    """Progress as bars under the table so far, redrawn in place and gone at the end."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn())
        detail = TextColumn("{task.fields[detail]}", style="dim")
        self._bars = Bars(*columns, TimeElapsedColumn(), detail, console=console, auto_refresh=False)
        self._tasks: dict[str, TaskID] = {}
        self._live = Live(console=console, transient=True, refresh_per_second=8)

    def __enter__(self) -> Screen:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def update(self, step: Progress, table: Table) -> None:
        """Redraw the table so far and the bar of this stage."""
        if step.stage not in self._tasks:
            self._tasks[step.stage] = self._bars.add_task(step.stage, total=step.total, detail="")
        self._bars.update(self._tasks[step.stage], completed=step.done, detail=step.detail)
        block = fit(table, self._live.console.width)[0]
        self._live.update(Group(_rich_table(block), "", self._bars))


def watching() -> Screen | Lines:
    """Choose how to show progress on stderr: redrawn on a terminal, plain lines elsewhere."""
    console = Console(stderr=True)
    return Screen(console) if console.is_terminal else Lines()
