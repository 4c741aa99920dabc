"""The opening of one file that somebody names: regular files only.

Owns: what may be opened. A pipe would wait for ever, a device would never end.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from tied.files.reading.refusal import refuse

KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


def open_regular(path: str | Path) -> BinaryIO:
    """Open a file for reading, without waiting for anybody.

    Raises:
        FileError: It is not a regular file.
        OSError: It cannot be opened.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    kind = stat.S_IFMT(os.fstat(handle).st_mode)
    if kind != stat.S_IFREG:
        os.close(handle)
        refuse(
            path, "It is not a regular file.", found=KINDS.get(kind, "a device"), expected="a file", fix="name a file"
        )
    return os.fdopen(handle, "rb")
