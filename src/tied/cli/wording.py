"""How an error of the library is said to somebody who typed a command.

Owns: leaving out the call, which nobody made, and speaking of options as options. Must not print.
"""

from __future__ import annotations

import re

from tied.errors import TieError

OPTIONS = ("keep", "select", "ignore", "prove")
"""The keywords of the library that commands have as options, under the same name."""

KEYWORD = re.compile(rf"\b({'|'.join(OPTIONS)})=((?:'\w+'(?:, | or )?)+|True)")


def said(error: TieError, *, state: str | None = None) -> str:
    """Word an error for the command line; `state` is what the error itself says of it, unless given.

    Example:
        >>> error = TieError("Two values differ.", found="'a' and 'b'", expected="one", fix="keep='source' or 'mean'")
        >>> print(said(error))
        Two values differ.
          found:    'a' and 'b'
          expected: one
          fix:      --keep source or mean
    """
    parts = {"found": error.found, "expected": error.expected, "fix": error.fix}
    lines = [f"  {name + ':':9} {as_options(text)}" for name, text in parts.items() if text]
    left = error.changed if state is None else state
    return "\n".join([as_options(error.problem), *lines, *filter(None, [left])])


def as_options(text: str) -> str:
    """Write keywords of Python calls as options: `keep='mean'` is `--keep mean`."""
    return KEYWORD.sub(lambda found: f"--{found[1]} {found[2].replace(chr(39), '')}".removesuffix(" True"), text)
