"""The scanner: a cursor over one text, and the errors that name its position.

Owns: characters. Must not know the grammar. Read next: `address_parser.py`.
"""

from __future__ import annotations

import re
from typing import NoReturn

from tied.errors import ParseError

MOST_CHARACTERS = 100_000
SPACE = re.compile(r"\s*")


class Scanner:
    """A cursor over one text."""

    def __init__(self, text: str) -> None:
        """Start at the beginning of `text`."""
        self.source, self.at = text, 0
        if len(text) > MOST_CHARACTERS:
            self.fail("The text is too long.", found=f"{len(text)} characters", expected=f"at most {MOST_CHARACTERS}")

    def fail(self, problem: str, *, found: str, expected: str, at: int | None = None) -> NoReturn:
        """Raise with the position, which is that of the cursor unless `at` moves it."""
        self.at = self.at if at is None else at
        raise ParseError(
            problem,
            found=f"{found}, {self.place()}",
            expected=expected,
            fix="write it as in torch: 'encoder.weight.T', '2 * a.w', 'cat([a.w, b.w], 0)', 'embed.weight[:100]'",
        )

    def place(self) -> str:
        """Name the position of the cursor and its surroundings."""
        near = self.source[max(0, self.at - 20) : self.at + 20]
        return f"at position {self.at + 1} of '{near if len(self.source) > 60 else self.source}'"

    def skip(self) -> str:
        """Skip white space; return the next character, or an empty text at the end."""
        space = SPACE.match(self.source, self.at)
        self.at = space.end() if space else self.at
        return self.source[self.at : self.at + 1]

    def take(self, symbol: str) -> bool:
        """Step over `symbol` if it comes next."""
        if not symbol or self.skip() != symbol:
            return False
        self.at += 1
        return True

    def need(self, symbol: str) -> None:
        """Step over `symbol`, which must come next."""
        if not self.take(symbol):
            self.fail("Something is missing.", found=self.shown(), expected=f"'{symbol}'")

    def match(self, pattern: re.Pattern[str]) -> str | None:
        """Step over a pattern if it comes next."""
        self.skip()
        found = pattern.match(self.source, self.at)
        if not found:
            return None
        self.at = found.end()
        return found.group()

    def shown(self) -> str:
        """Name what comes next, for a message."""
        return repr(self.skip()) if self.skip() else "the end"
