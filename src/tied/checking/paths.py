"""What a path means to `tied.check`: source code, a checkpoint, or a folder that holds both.

Owns: telling them apart. Must not import torch, which looking at source code does not need.
Read next: `source/look.py`, `files/auditing/audit.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tied.checking.source.files import SUFFIX, has_python
from tied.checking.source.look import look_at_source
from tied.errors import FileError, during
from tied.reporting.facts import Finding
from tied.reporting.report import Report
from tied.reporting.rules import NOT_LOOKED_AT, chosen, finding


def is_source_file(path: str | Path) -> bool:
    """Whether a path names a Python file, there or not."""
    return str(path).endswith(SUFFIX) and not Path(path).is_dir()


def look_at_path(
    path: str | Path, *, prove: bool = False, select: Sequence[str] | None = None, ignore: Sequence[str] = ()
) -> Report:
    """Look at a Python file, a folder of them, a checkpoint, or a folder with a checkpoint and Python files.

    Args:
        path: Of a file or folder.
        prove: Compare transposed copies in a checkpoint element by element.
        select: Codes of findings, or their beginnings, to report; None is all.
        ignore: Codes, or their beginnings, to leave out.

    Raises:
        FileError: The one file that is named cannot be looked at.
        OSError: It cannot be opened.
    """
    path = Path(path)
    if is_source_file(path):
        report = look_at_source(path, select=select, ignore=ignore)
        _refuse_unread(path, report)
        return report
    if path.is_dir() and has_python(path):
        source = look_at_source(path, select=select, ignore=ignore)
        return _with_checkpoint(path, source, prove=prove, select=select, ignore=ignore)
    return _audited(path, prove=prove, select=select, ignore=ignore)


def _audited(path: Path, *, prove: bool, select: Sequence[str] | None, ignore: Sequence[str]) -> Report:
    from tied.files.auditing.audit import audit  # source code does not wait for numpy

    return audit(path, prove=prove, select=select, ignore=ignore)


def _refuse_unread(path: Path, report: Report) -> None:
    unread = [one for one in report.findings if one.code == NOT_LOOKED_AT]
    for one in unread:
        with during(f"check({str(path)!r})"):
            raise FileError(
                "The file could not be looked at.",
                found=f"line {one.line}: {one.message.removeprefix('Not looked at: ')}",
                expected="Python source code that this Python parses",
                fix="mend the file, or leave it out",
            )


def _with_checkpoint(
    path: Path, source: Report, *, prove: bool, select: Sequence[str] | None, ignore: Sequence[str]
) -> Report:
    """Add what is found in the folder's checkpoint; where it cannot be read, say so beside the source's findings."""
    from tied.files.reading.folder import holds_checkpoint

    if not holds_checkpoint(path):
        return source
    try:
        stored = _audited(path, prove=prove, select=select, ignore=ignore)
    except (FileError, OSError) as error:
        said = getattr(error, "problem", "") or str(error)
        seen: Finding = replace(finding(NOT_LOOKED_AT, (), f"Not looked at: {said}"), file=str(path))
        kept = chosen([seen], ignore=ignore)
        return replace(source, findings=(*kept, *source.findings))
    return replace(stored, findings=(*stored.findings, *source.findings), files=source.files)
