"""What the eyes saw, as data: groups, findings, counts.

Owns: `Group`, `Finding`, `Facts` and their JSON form. Must not look at models or files, nor decide anything, nor know
how it is shown. Read next: `rules.py`, then `report.py`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

from tied.memory import IDENTITY

State = Literal["tied", "half-tied", "equal", "drifted", "called", "declared"]
Severity = Literal["error", "warning", "note"]

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
SCHEMA_VERSION = 1
WORDS = re.compile(r"([^\W\d]\w*(\.\w+)*)?")


@dataclass(frozen=True)
class Group:
    """Tensors, or whole modules, that share, or that should.

    Attributes:
        state: `tied` (one tensor), `half-tied` (several tensors over one memory), `equal` (equal values in
            separate memory), `drifted` (declared equal, found different), `called` (one module, several calls
            in a forward) or `declared` (configured, not there).
        names: Addresses as in `named_parameters`; the first owns the largest memory.
        transforms: What each name is of the first: "identity", a suffix such as ".T" or "[:8]", a whole
            expression such as "2 * embed.weight", "overlap" (no transform expresses it), or "4 calls".
        shape: Of the first tensor; empty for modules.
        dtype: Of the first tensor, as "float32"; empty for modules of several.
        bytes: Of the memory of one copy.
        parts: The groups of the tensors inside, where the names are modules.
        uses: Where a forward uses it, of a Parameter that it uses several times.
    """

    state: State
    names: tuple[str, ...]
    transforms: tuple[str, ...]
    shape: tuple[int, ...] = ()
    dtype: str = ""
    bytes: int = 0
    parts: tuple[Group, ...] = ()
    uses: tuple[str, ...] = ()

    __module__ = "tied"

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        data: dict[str, Any] = {"state": self.state, "names": list(self.names), "transforms": list(self.transforms)}
        data |= {"shape": list(self.shape), "dtype": self.dtype, "bytes": self.bytes}
        data |= {"parts": [part.to_json() for part in self.parts]} if self.parts else {}
        return data | ({"uses": list(self.uses)} if self.uses else {})


def expression(group: Group, index: int) -> str:
    """Return what one name of a group is, as an expression of the first that the parser reads back.

    Example:
        >>> expression(Group("tied", ("a", "b"), ("identity", ".T")), 1)
        'a.T'
    """
    transform = group.transforms[index]
    if transform == IDENTITY:
        return spelled(group.names[0])
    return spelled(group.names[0]) + transform if transform[:1] in ".[" else transform


def spelled(name: str) -> str:
    """Write a name as an address of the language, which quotes what is not made of words.

    Example:
        >>> spelled("layers.0.weight"), spelled("en-de.weight")
        ('layers.0.weight', '["en-de"].weight')
    """
    if WORDS.fullmatch(name):
        return name
    from tied.algebra.address import address_of, show_address  # which needs torch, and most looks at files do not

    return show_address(address_of(name))


def quoted(name: str) -> str:
    r"""Quote a name for a line of Python that is to be pasted: whatever the name holds, it stays a text.

    Example:
        >>> quoted('a"); print("x')
        '"a\\"); print(\\"x"'
    """
    return json.dumps(name)


@dataclass(frozen=True)
class Finding:
    """One thing to know about what is shared.

    Attributes:
        code: Stable, such as "TIE101"; `tied rules TIE101` explains it.
        severity: "error" (wrong now), "warning" (wrong sooner or later), "note" (worth knowing).
        names: The addresses that it is about.
        message: One sentence.
        fix: Something that can be pasted; empty where nothing need be done.
        file: The source file that it is about; empty where it is about a model or a checkpoint.
        line: In that file, from 1.
    """

    code: str
    severity: Severity
    names: tuple[str, ...]
    message: str
    fix: str = ""
    file: str = ""
    line: int = 0

    __module__ = "tied"

    def to_json(self) -> dict[str, Any]:
        """Return plain data; `file` and `line` where it is about source code."""
        data: dict[str, Any] = {"code": self.code, "severity": self.severity, "names": list(self.names)}
        data |= {"message": self.message, "fix": self.fix}
        return data | ({"file": self.file, "line": self.line} if self.file else {})


@dataclass(frozen=True)
class Facts:
    """What was seen of a model or a file, as data; a `Report` shows it.

    Attributes:
        subject: What was looked at: the model's class, or the file's path.
        groups: What shares, or should.
        findings: What is wrong or worth knowing, the worst first.
        parameters: How many numbers are trained or trainable, each counted once. Of a file: how many it holds.
        bytes: Of all tensors, memory that is shared counted once.
        bytes_saved: What the same tensors would take more if nothing were shared.
        notes: What could not be looked at, and why.
        files: How many source files were looked at.
        optimizer_bytes: Of an optimizer's state that lies in the file too, and is in no other figure.
    """

    subject: str
    groups: tuple[Group, ...] = ()
    findings: tuple[Finding, ...] = ()
    parameters: int = 0
    bytes: int = 0
    bytes_saved: int = 0
    notes: tuple[str, ...] = ()
    files: int = 0
    optimizer_bytes: int = 0

    __module__ = "tied"

    @property
    def ok(self) -> bool:
        """Whether there is no error and no warning; notes are fine."""
        return all(finding.severity == "note" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain data, with the version of its schema."""
        data: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "subject": self.subject,
            "ok": self.ok,
            "parameters": self.parameters,
            "bytes": self.bytes,
            "bytes_saved": self.bytes_saved,
            "groups": [group.to_json() for group in self.groups],
            "findings": [finding.to_json() for finding in self.findings],
            "notes": list(self.notes),
        }
        data |= {"optimizer_bytes": self.optimizer_bytes} if self.optimizer_bytes else {}
        return data | ({"files": self.files} if self.files else {})
