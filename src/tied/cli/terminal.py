"""How tables, reports and progress look on a terminal, and without one.

Owns: every use of rich. Data goes to stdout, commentary to stderr; colors appear on a terminal only, and
never carry meaning alone. `NO_COLOR`, `FORCE_COLOR`, `TERM=dumb` and `COLUMNS` are followed.
"""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

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

from tied.reporting.facts import Facts
from tied.reporting.sarif import harmless
from tied.reporting.table import Cell, Table, fit, to_text
from tied.reporting.text import heading_of, lines_of_fix, to_text as report_to_text, verdict

if TYPE_CHECKING:
    from tied.study.progress import Progress

STYLES = {"plain": "", "good": "green", "bad": "bold red"}
COLORS = {"error": "red", "warning": "yellow", "note": "cyan"}
PLAIN_WIDTH, NARROWEST = 100, 20
FIX = "  fix: "


def say(text: str) -> None:
    """Print a line of commentary to stderr."""
    print(text, file=sys.stderr, flush=True)


class Line(NamedTuple):
    """One line: the severity that colors it, and how it is wrapped where it is too long.

    Attributes:
        text: Safe to print.
        severity: "" for no color.
        indent: Of the lines that follow when it is wrapped; None where it is never wrapped, as code is not.
    """

    text: str
    severity: str = ""
    indent: int | None = None


def show_lines(lines: Iterable[Line], *, wrapped: bool = False) -> None:
    """Print lines to stdout: on a terminal in color and wrapped at its width; elsewhere as they are, or `wrapped`."""
    console = _console()
    width = max(_width(console), NARROWEST)
    for line in lines:
        folded = _folded(line, width) if wrapped or console.is_terminal else line.text
        if console.is_terminal:
            console.print(Text(folded, style=COLORS.get(line.severity, "")), soft_wrap=True)
        else:
            print(folded)


def show_reports(reports: Iterable[Facts]) -> None:
    """Print reports to stdout as text: on a terminal colored by severity, elsewhere plain."""
    console = _console()
    width = max(_width(console), NARROWEST)
    for number, report in enumerate(reports):
        if number:
            print()
        show_lines(_lines_of(report, width)) if console.is_terminal else print(report_to_text(report))


def _lines_of(report: Facts, width: int) -> Iterator[Line]:
    """Yield the text of a report, line by line; a fix is never wrapped, for it is to be pasted."""
    severities = {heading_of(finding): finding.severity for finding in report.findings}
    if report.findings:
        severities[f"{verdict(report).capitalize()}."] = report.findings[0].severity
    fixes = {harmless(line) for finding in report.findings for line in lines_of_fix(finding)}
    for text in report_to_text(report, width).splitlines():
        is_fix = text.startswith((FIX, " " * len(FIX))) and text[len(FIX) :] in fixes
        indent = None if is_fix else len(text) - len(text.lstrip()) + 2
        yield Line(text, severities.get(text, ""), indent)


def _folded(line: Line, width: int) -> str:
    if line.indent is None or len(line.text) <= width:
        return line.text
    after = " " * line.indent
    return textwrap.fill(line.text, width, subsequent_indent=after, break_long_words=False, break_on_hyphens=False)


def _console(*, stderr: bool = False) -> Console:
    """Return the console of a stream; where `NO_COLOR` is set it sends no codes at all, those of bold type included."""
    return Console(stderr=stderr, color_system=None if os.environ.get("NO_COLOR") else "auto")


def _width(console: Console) -> int:
    """Return the width of the terminal; of colored output that goes elsewhere the usual one."""
    return shutil.get_terminal_size().columns if console.file.isatty() else PLAIN_WIDTH


def show_table(table: Table) -> None:
    """Print a table to stdout: colored on a terminal, plain text elsewhere."""
    console = _console()
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
    console = _console(stderr=True)
    return Screen(console) if console.is_terminal else Lines()
