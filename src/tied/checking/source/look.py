"""A look at source code: Python files, one or a folder of them, to a report.

Owns: the order of the rules, and what a report of source code holds. Must not import torch.
Read next: `files.py`, `text.py`, then a rule, such as `rules/parameters.py`.
"""

from __future__ import annotations

import gc
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tied.checking.source.files import SHORT, UnreadableError, parsed, python_files, read
from tied.checking.source.found import Found
from tied.checking.source.rules.parameters import second_parameters
from tied.checking.source.rules.pointers import pointed_data, raw_assignments
from tied.checking.source.rules.repeats import repeated_modules
from tied.checking.source.rules.uses import copies, detached_uses
from tied.checking.source.signs import signs_in
from tied.checking.source.text import Text
from tied.checking.source.words import is_ignored
from tied.reporting.facts import Finding
from tied.reporting.report import Report
from tied.reporting.rules import NOT_LOOKED_AT, chosen, finding

RULES = {
    "TIE601": second_parameters,
    "TIE602": pointed_data,
    "TIE603": raw_assignments,
    "TIE604": copies,
    "TIE605": detached_uses,
    "TIE606": repeated_modules,
}


def look_at_source(*paths: str | Path, select: Sequence[str] | None = None, ignore: Sequence[str] = ()) -> Report:
    r"""Look for the wrong ways to share weights in Python files, and in those of folders; nothing is run.

    Law: a finding is a line that shares by halves, not at all, or by accident; where names lead nowhere known,
    nothing is found. What could not be looked at is a finding, too, which only `ignore` silences.

    Args:
        paths: Files and folders.
        select: Codes of findings, or their beginnings, to report; None is all.
        ignore: Codes, or their beginnings, to leave out.

    Returns:
        The findings by file and line.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "model.py"
        >>> _ = path.write_text("from torch import nn\ndef tie(m):\n    m.b.weight = nn.Parameter(m.a.weight.t())\n")
        >>> [(found.code, found.line) for found in look_at_source(path).findings]
        [('TIE601', 3)]
    """
    named = [Path(path) for path in paths]
    files = list(dict.fromkeys(file for path in named for file in python_files(path)))
    with _without_collecting():
        findings = [found for file in files for found in findings_in(file, whole=file in named)]
    selected = None if select is None else [*select, NOT_LOOKED_AT]
    kept = set(chosen(findings, select=selected, ignore=ignore))
    return Report(_subject(named), findings=tuple(one for one in findings if one in kept), files=len(files))


def _subject(paths: Sequence[Path]) -> str:
    few = ", ".join(map(str, paths[:3]))
    return few if len(paths) <= 3 else f"{few} and {len(paths) - 3} more"


def findings_in(path: Path, *, whole: bool = True) -> Iterator[Finding]:
    """Yield the findings of one file by line; one that says why, where it could not be looked at."""
    try:
        text = read(path)
        found = found_in(text, path.stem, whole=whole)
    except UnreadableError as error:
        seen = finding(NOT_LOOKED_AT, (), f"Not looked at: {error.problem}.")
        yield replace(seen, file=str(path), line=error.line)
        return
    for one in found:
        yield replace(finding(one.code, one.names, one.message, one.fix), file=str(path), line=one.line)


def found_in(text: str, stem: str = "", *, whole: bool = True) -> list[Found]:
    """Return what the rules find in a text, and no comment silences, by line.

    Args:
        text: Of the file.
        stem: The file's name without its suffix.
        whole: Parse it whatever it holds; if not, a long text that holds nothing of what rules look for is not parsed.

    Raises:
        UnreadableError: it cannot be parsed, or is nested too deeply to be followed.
    """
    signs = signs_in(text)
    tree = parsed(text) if signs or whole or len(text) <= SHORT else None
    if not signs or tree is None:
        return []
    taken = Text(text, tree, stem)
    try:
        taken.take_apart()
        seen = [one for code in signs for one in RULES[code](taken)]
        kept = [one for one in seen if "tied:" not in text or not is_ignored(taken.comments, one.lines, one.code)]
    except RecursionError:
        raise UnreadableError("it is nested too deeply to be followed") from None
    finally:
        taken.forget()
    return sorted(_each_once(kept), key=lambda one: (one.line, one.code))


def _each_once(found: list[Found]) -> list[Found]:
    return list({(one.code, one.line, one.names): one for one in found}.values())


@contextmanager
def _without_collecting() -> Generator[None]:
    """Leave the garbage collector out: a syntax tree is a million small objects without a circle."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
