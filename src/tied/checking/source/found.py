"""What a rule found, before comments may silence it.

Owns: `Found`. Must not know rules.
"""

from __future__ import annotations

import ast
from typing import NamedTuple

from tied.checking.source.scopes import INNER, At


class Found(NamedTuple):
    """One finding: its code, where it stands, the names, the sentence and the line to write instead."""

    code: str
    node: ast.expr | ast.stmt
    at: At
    names: tuple[str, ...]
    message: str
    fix: str

    @property
    def lines(self) -> range:
        """The lines on which a comment silences it: those of its statement, without the blocks inside."""
        statement = self.at.statement
        last = statement.end_lineno or statement.lineno
        if any(getattr(statement, part, None) for part in INNER):
            last = self.node.end_lineno or self.node.lineno
        return range(min(statement.lineno, self.node.lineno), max(last, self.node.end_lineno or 0) + 1)
