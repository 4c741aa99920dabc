"""New files: whole or not at all.

Owns: the way of every byte that `files` writes: into a new file beside the one that is meant, to the disk, and
then into its place. Must not know what stands in a file. Read next: `files/models/save.py`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

BUFFER = 1 << 18  # small tensors are gathered to pieces of this size; larger ones go out as they are


@contextmanager
def new_files(paths: Sequence[Path], *, instead_of: Sequence[Path] = ()) -> Generator[list[BinaryIO]]:
    """Give a stream for each path; when all is written, the files take their places, in the given order.

    Until then the streams are files of their own, with a name that begins with a dot, beside the ones that are
    meant. Where anything fails they are removed, and whatever stood at the paths stays as it was; a killed process
    leaves one of them behind, and never a part of a file under a name that somebody reads. What is written is on
    the disk before it takes its place. A path that is a symbolic link stays one: what it leads to is replaced.

    Args:
        paths: Where the files are to stand.
        instead_of: Files that go before the first new one takes its place: an index, which must never name old and
            new files together.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.bin"
        >>> with new_files([path]) as (stream,):
        ...     _ = stream.write(b"all of it")
        ...     path.exists()
        False
        >>> path.read_bytes()
        b'all of it'
    """
    meant = [Path(os.path.realpath(path)) for path in paths]
    with ExitStack() as undo:
        drafts = [_draft(path) for path in meant]
        for draft in drafts:
            undo.callback(_remove, draft)
        streams = [undo.enter_context(_created(draft)) for draft in drafts]
        yield streams
        for stream in streams:
            stream.flush()
            os.fsync(stream.fileno())
            stream.close()
        for path in instead_of:
            path.unlink(missing_ok=True)
        for draft, path in zip(drafts, meant, strict=True):
            draft.replace(path)
    for folder in dict.fromkeys(path.parent for path in meant):
        _settle(folder)


def _draft(path: Path) -> Path:
    return path.with_name(f".tied-{secrets.token_hex(8)}.tmp")


def _created(draft: Path) -> BinaryIO:
    """Create a file that did not exist; its mode is what any new file gets."""
    handle = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    return os.fdopen(handle, "wb", BUFFER)


def _remove(draft: Path) -> None:
    with contextlib.suppress(OSError):
        draft.unlink()


def _settle(folder: Path) -> None:
    """Have the disk remember the new names, where folders can be opened."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
