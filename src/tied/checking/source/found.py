"""What a rule found, before comments may silence it.

Owns: `Found`. Must not know rules, nor keep any part of the file that it is about.
"""

from __future__ import annotations

import ast
from typing import NamedTuple

from tied.checking.source.scopes import INNER, At


class Found(NamedTuple):
    """One finding: its code and line, the lines on which a comment silences it, and what a `Finding` says."""

    code: str
    line: int
    lines: range
    names: tuple[str, ...]
    message: str
    fix: str


def found(code: str, node: ast.expr | ast.stmt, at: At, *, names: tuple[str, ...], message: str, fix: str) -> Found:
    """Make what a rule found; a comment on any line of its statement, blocks left out, silences it."""
    statement = at.statement
    last = statement.end_lineno or statement.lineno
    if any(getattr(statement, part, None) for part in INNER):
        last = node.end_lineno or node.lineno
    lines = range(min(statement.lineno, node.lineno), max(last, node.end_lineno or 0) + 1)
    return Found(code, node.lineno, lines, names, message, fix)
