"""Python files: found in folders, read, decoded and parsed, or refused with a reason.

Owns: which files are meant, how large one may be, and why one could not be looked at. Must not run or import them.
"""

from __future__ import annotations

import ast
import io
import os
import stat
import tokenize
import warnings
from collections.abc import Iterator
from pathlib import Path

MOST_BYTES = 4 << 20
SHORT = 4 << 10  # a file up to this length is parsed whatever it holds, so that a broken one is named
SUFFIX = ".py"
SKIPPED = frozenset(("__pycache__", "site-packages", "node_modules"))


class UnreadableError(Exception):
    """A file could not be looked at: why, and on which line."""

    def __init__(self, problem: str, line: int = 1) -> None:
        """Keep both."""
        super().__init__(problem)
        self.problem, self.line = problem, line


def python_files(path: Path) -> Iterator[Path]:
    """Yield a file, or the Python files of a folder, in order; links to folders are not followed.

    Hidden folders, virtual environments and installed packages inside the folder are left out.
    """
    if not path.is_dir():
        yield path
        return
    for folder, inner, files in os.walk(path):
        inner[:] = sorted(name for name in inner if not _is_left_out(Path(folder) / name))
        yield from (Path(folder) / name for name in sorted(files) if name.endswith(SUFFIX))


def has_python(path: Path) -> bool:
    """Whether a folder holds a Python file."""
    return next(python_files(path), None) is not None


def _is_left_out(folder: Path) -> bool:
    return folder.name.startswith(".") or folder.name in SKIPPED or (folder / "pyvenv.cfg").exists()


def read(path: Path) -> str:
    """Return the text of a file, by the encoding that it declares.

    Raises:
        UnreadableError: it is no regular file, too large, or not of the encoding that it claims.
    """
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UnreadableError("it is not a regular file")
            raw = stream.read(MOST_BYTES + 1)
    except OSError as error:
        raise UnreadableError(f"it cannot be opened: {error.strerror or error}") from None
    if len(raw) > MOST_BYTES:
        raise UnreadableError(f"it is larger than {MOST_BYTES >> 20} MiB")
    return _decoded(raw)


def _decoded(raw: bytes) -> str:
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(raw).readline)
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UnreadableError(f"a byte is not {error.encoding}", line) from None
    except (SyntaxError, LookupError) as error:
        raise UnreadableError(f"its encoding is not known: {error}") from None
    if "\0" in text:
        raise UnreadableError("it holds a NUL byte", text.count("\n", 0, text.index("\0")) + 1)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def parsed(text: str) -> ast.Module:
    """Parse a text.

    Raises:
        UnreadableError: it is not Python of this version, or nested too deeply.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of strings with odd escapes, which are not ours to judge
            return ast.parse(text)
    except SyntaxError as error:
        raise UnreadableError(f"it does not parse: {error.msg}", error.lineno or 1) from None
    except ValueError as error:
        raise UnreadableError(f"it does not parse: {error}") from None
    except (RecursionError, MemoryError):
        raise UnreadableError("it is nested too deeply to be parsed") from None
