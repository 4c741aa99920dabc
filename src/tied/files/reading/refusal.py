"""How a file is refused: the error that names it and the offence, safe to print.

Owns: the words of a refusal. Must not open files. Read next: `safetensors_header.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from tied.errors import FileError, short

MOST_PATH = 100
AGAIN = "it was cut short: save or download it again"
SPLIT = "split it into several files: more is refused, so that a hostile file costs no more than a second"
RESAVE = "load it where you trust it, and torch.save(model.state_dict(), path)"
OTHER = "no reader accepts this: ask whoever wrote the file for another one"


def refuse(path: str | Path, problem: str, found: str, expected: str, fix: str = OTHER) -> NoReturn:
    """Raise the error of a broken file."""
    raise FileError(f"{shown_path(path)}: {problem}", found=found, expected=expected, fix=fix)


def shown_path(path: str | Path) -> str:
    """Write a path as `shown` writes names, but keep its end, which tells more."""
    text = ascii(str(path))
    return text if len(text) <= MOST_PATH else f"{text[0]}...{text[-MOST_PATH:]}"


def shown(name: str | Path) -> str:
    r"""Write a name that a file holds so that no terminal acts on it: quoted, escaped and short.

    Example:
        >>> print(shown("lm_head.weight"), shown("\x1b[2J"))
        'lm_head.weight' '\x1b[2J'
    """
    return short(ascii(str(name)))
