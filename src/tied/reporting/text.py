"""A report of `tied.check`, as text and as HTML.

Owns: what a report says in words (`summary`, `entry_of`, `verdict`), which text and HTML both show, and the two
layouts. Must not look at models. Read next: `sarif.py` for SARIF and GitHub.

Names come from files and models that nobody trusts: what a terminal would obey is shown as an escape.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import replace
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
    others = [*_equations(group), *group.uses]
    if len(others) > MOST_NAMES + 1:
        others = [*others[:MOST_NAMES], f"... and {len(others) - MOST_NAMES} more"]
    first = group.names[0] + _inside(group)
    return Entry(group.state, harmless(first), size_text(group.bytes), what, tuple(map(harmless, others)))


def _inside(group: Group) -> str:
    """Return what stands behind the names of modules: everything in them."""
    return ".*" if group.parts else ""


def _equations(group: Group) -> Iterator[str]:
    """Say what every name but the first is; names that count up, and are the same of it, in one line."""
    group = _counted_up(group)
    for begin, end in _runs(group):
        several = [name + _inside(group) for name in group.names[begin:end]]
        is_dense = len(several) > 1 and _counted(*group.names[begin : begin + 2]) == 1
        shown = several if len(several) == 1 else [", ".join(several[: 1 if is_dense else 2]), several[-1]]
        names, transform = " … ".join(shown), group.transforms[begin]
        if transform == "source":
            yield names
        elif transform == OVERLAP:
            yield f"{names} (overlaps)"
        else:
            yield f"{names} = {expression(group, begin)}{_inside(group)}"


def _counted_up(group: Group) -> Group:
    """Put the names that differ in their numbers alone in the order of these, beside the first of them."""
    first: dict[str, int] = {}
    keys = [
        (first.setdefault(re.sub("[0-9]+", "0", name), place), _numbers(name)) for place, name in enumerate(group.names)
    ]
    order = [0, *sorted(range(1, len(keys)), key=lambda place: keys[place])]
    names, transforms = ([values[place] for place in order] for values in (group.names, group.transforms))
    return replace(group, names=tuple(names), transforms=tuple(transforms))


def _numbers(name: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"[0-9]+", name)]


def _runs(group: Group) -> Iterator[tuple[int, int]]:
    """Yield from where to where names count up with one step, three at least; each other name by itself."""
    names, transforms = group.names, group.transforms
    begin = 1
    while begin < len(names):
        end = begin + 1
        step = _counted(names[begin], names[end]) if end < len(names) else None
        while step and end < len(names) and transforms[end] == transforms[begin]:
            if _counted(names[end - 1], names[end]) != step:
                break
            end += 1
        end = end if end - begin > 2 else begin + 1
        yield begin, end
        begin = end


def _counted(one: str, other: str) -> int | None:
    """Return by how much the one number in which two names differ grows; None where they differ otherwise."""
    first, second = one.split("."), other.split(".")
    if len(first) != len(second):
        return None
    apart = [(a, b) for a, b in zip(first, second, strict=True) if a != b]
    if len(apart) != 1 or not all(part.isascii() and part.isdigit() for part in apart[0]):
        return None
    return max(0, int(apart[0][1]) - int(apart[0][0])) or None


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
