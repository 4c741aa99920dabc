"""A report of `tied.check`, as text and as HTML.

Owns: what a report says in words (`summary`, `entry_of`, `verdict`), which text and HTML both show, and the two
layouts. Must not look at models. Read next: `sarif.py` for SARIF and GitHub.

Names come from files and models that nobody trusts: what a terminal would obey is shown as an escape.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import NamedTuple

from tied.memory import OVERLAP
from tied.reporting.facts import SEVERITIES, Facts, Finding, Group, expression
from tied.reporting.page import Code, Heading, Paragraph, Part, page, part_to_html
from tied.reporting.rules import RULES
from tied.reporting.sarif import harmless, to_github as to_github, to_sarif as to_sarif
from tied.reporting.table import Cell, Table, Tone

WIDTH = 100
MOST_NAMES, MOST_GROUPS, MOST_FINDINGS = 8, 40, 40
TONES: dict[str, Tone] = {"tied": "good", "called": "good", "half-tied": "bad", "drifted": "bad"}


class Entry(NamedTuple):
    """What a report says of one group.

    Attributes:
        state: Of the group.
        first: The first name.
        size: Of one copy, with its unit.
        what: Shape and dtype, or how much a module holds.
        others: One equation for each further name.
    """

    state: str
    first: str
    size: str
    what: str
    others: tuple[str, ...]


def summary(report: Facts) -> str:
    """Say how much there is and how much sharing saves.

    Example:
        >>> summary(Facts("Model", parameters=1_000_000, bytes=4_000_000, bytes_saved=1_000_000))
        '1,000,000 parameters, 3.8 MiB; sharing saves 976.6 KiB'
        >>> summary(Facts("model.ckpt", parameters=2_482, bytes=9_928, optimizer_bytes=19_884))
        "2,482 parameters, 9.7 KiB, and 19.4 KiB of an optimizer's state; nothing is saved by sharing"
        >>> summary(Facts("src", files=12))
        '12 source files'
    """
    files = f"{report.files:,} source file{'' if report.files == 1 else 's'}"
    if is_of_source(report):
        return files
    numbers = f"{report.parameters:,} parameter{'' if report.parameters == 1 else 's'}"
    saved = f"sharing saves {size_text(report.bytes_saved)}" if report.bytes_saved else "nothing is saved by sharing"
    state = f", and {size_text(report.optimizer_bytes)} of an optimizer's state" if report.optimizer_bytes else ""
    return f"{numbers}, {size_text(report.bytes)}{state}; {saved}" + (f"; {files}" if report.files else "")


def is_of_source(report: Facts) -> bool:
    """Whether source code was looked at, and neither a model nor a checkpoint."""
    return bool(report.files) and not report.bytes and not report.groups


def verdict(report: Facts) -> str:
    """Count the findings: "1 error, 2 notes"."""
    counts = {severity: sum(f.severity == severity for f in report.findings) for severity in SEVERITIES}
    said = [f"{count} {severity}{'' if count == 1 else 's'}" for severity, count in counts.items() if count]
    return ", ".join(said) or "no findings"


def entry_of(group: Group) -> Entry:
    """Say what a group is: its first name, and every other as an equation."""
    what = f"{'×'.join(map(str, group.shape)) or 'scalar'} {group.dtype}"
    if group.state == "called":
        what = group.transforms[0]
    elif group.parts:
        what = f"{len(group.parts)} tensors {group.dtype}".rstrip()
    elif not group.dtype:
        what = "not initialized" if group.state != "declared" else ""
    others = [*(_equation(group, index) for index in range(1, len(group.names))), *group.uses]
    if len(others) > MOST_NAMES + 1:
        others = [*others[:MOST_NAMES], f"... and {len(others) - MOST_NAMES} more"]
    return Entry(group.state, harmless(group.names[0]), size_text(group.bytes), what, tuple(map(harmless, others)))


def _equation(group: Group, index: int) -> str:
    name, transform = group.names[index], group.transforms[index]
    if transform == "source":
        return name
    return f"{name} (overlaps)" if transform == OVERLAP else f"{name} = {expression(group, index)}"


def size_text(count: int) -> str:
    """Write a number of bytes with a unit.

    Example:
        >>> size_text(512), size_text(90112), size_text(3 * 2**30)
        ('512 B', '88.0 KiB', '3.0 GiB')
    """
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


# -- text ---------------------------------------------------------------------------------------------


def to_text(report: Facts, width: int = WIDTH) -> str:
    """Write a report as text, for people; sentences are wrapped at a width."""
    blocks = [f"{harmless(report.subject)}: {summary(report)}"]
    shared = "\n".join(_group_lines(report)) if report.groups else "  Nothing is shared."
    blocks += [] if is_of_source(report) else [shared]
    blocks += ["\n".join(_finding_lines(finding, width)) for finding in report.findings[:MOST_FINDINGS]]
    hidden = len(report.findings) - MOST_FINDINGS
    blocks += [f"... and {hidden} more findings"] if hidden > 0 else []
    blocks += ["\n".join(_wrapped(note, "note: ", width)) for note in report.notes]
    return "\n\n".join([*blocks, f"{verdict(report).capitalize()}."])


def _group_lines(report: Facts) -> Iterator[str]:
    entries = [entry_of(group) for group in report.groups[:MOST_GROUPS]]
    state = max(len(entry.state) for entry in entries)
    name = max(len(entry.first) for entry in entries)
    size = max(len(entry.size) for entry in entries)
    for entry in entries:
        yield f"  {entry.state:{state}}  {entry.first:{name}}  {entry.size:>{size}}  {entry.what}".rstrip()
        yield from (f"  {'':{state}}  {other}" for other in entry.others)
    if len(report.groups) > MOST_GROUPS:
        yield f"  ... and {len(report.groups) - MOST_GROUPS} more groups"


def _finding_lines(finding: Finding, width: int) -> Iterator[str]:
    yield heading_of(finding)
    yield from _wrapped(finding.message, "  ", width)
    if finding.fix:
        first, *more = map(harmless, lines_of_fix(finding))
        yield f"  fix: {first}"
        yield from (f"       {line}" for line in more)


def heading_of(finding: Finding) -> str:
    """Return what a finding is, after the place in the source code that it is about."""
    what = f"{finding.severity} {finding.code} {RULES[finding.code].title}"
    where = f"{harmless(finding.file)}:{finding.line}: " if finding.line else f"{harmless(finding.file)}: "
    return where + what if finding.file else what


def lines_of_fix(finding: Finding) -> list[str]:
    """Return the lines of a fix: one, but for source code, whose fixes are made of its own lines."""
    return finding.fix.splitlines() if finding.file else [finding.fix]


def _wrapped(text: str, first: str, width: int) -> list[str]:
    return textwrap.wrap(
        harmless(text),
        width,
        initial_indent=first,
        subsequent_indent=" " * len(first),
        break_long_words=False,
        break_on_hyphens=False,
    )


# -- HTML ---------------------------------------------------------------------------------------------


def to_html(report: Facts) -> str:
    """Write a report as a page that stands alone."""
    return page(f"tied: {harmless(report.subject)}", _parts(report))


def to_fragment(report: Facts) -> str:
    """Write a report for a notebook."""
    title = Paragraph(harmless(report.subject))
    return f"<div>{''.join(part_to_html(part) for part in (title, *_parts(report)))}</div>"


def _parts(report: Facts) -> Iterator[Part]:
    yield Paragraph(f"{summary(report)}; {verdict(report)}.")
    if report.groups:
        yield Table(("state", "name", "what", "size"), tuple(map(_row, report.groups)), words=3)
    for finding in report.findings:
        yield Heading(heading_of(finding))
        yield Paragraph(harmless(finding.message))
        if finding.fix:
            yield Code("\n".join(map(harmless, lines_of_fix(finding))))
    yield from (Paragraph(harmless(note)) for note in report.notes)


def _row(group: Group) -> tuple[Cell, ...]:
    entry = entry_of(group)
    names = "\n".join((entry.first, *entry.others))
    return Cell(entry.state, TONES.get(entry.state, "plain")), Cell(names), Cell(entry.what), Cell(entry.size)
