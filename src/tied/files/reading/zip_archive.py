"""The zip archive that `torch.save` writes, looked at from outside before torch opens it.

Owns: that nothing in an archive unfolds, overlaps or hides. Must not unpickle. Read next: `pickle_limits.py`.

torch and `zipfile` have readers of their own. Both take the directory for what it is only where it lies
at the end of the file, without a gap; so nothing else is accepted.
"""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import BinaryIO

from tied.errors import FileError, short
from tied.files.reading.refusal import AGAIN, RESAVE, SPLIT, refuse, shown

MOST_DIRECTORY = 1 << 22  # bytes: some 40,000 parts
MOST_PICKLE = 1 << 26
_END, _END_64, _LOCATOR_64 = struct.Struct("<4s4H2LH"), struct.Struct("<4sQ2H2L4Q"), struct.Struct("<4sLQL")


def allowance(size: int) -> int:
    """Return how many times the limits hold for a file of this size: once, and once more for each GiB.

    What is large takes long to read anyway, and honest checkpoints with many tensors are large.
    """
    return 1 + (size >> 30)


def pickle_in(stream: BinaryIO, path: Path) -> bytes:
    """Check an archive, and return the part of it that torch unpickles.

    Raises:
        FileError: It is none of `torch.save`, or built to fill the memory, or to be read in two ways.
    """
    size = stream.seek(0, 2)
    _check_directory(stream, size, path)
    try:
        archive = zipfile.ZipFile(stream)
        parts = archive.infolist()
        _check_parts(parts, size, path)
        found = [part for part in parts if part.filename.lower().endswith("data.pkl")]
        if len(found) == 1:
            return archive.read(found[0])
    except FileError:
        raise
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError, EOFError) as error:
        said = short(ascii(str(error) or type(error).__name__))
        refuse(path, "Its archive is broken.", found=said, expected="a whole zip archive", fix=AGAIN)
    refuse(path, "It is no checkpoint.", found=f"{len(found)} parts called data.pkl", expected="one", fix=AGAIN)


def _check_directory(stream: BinaryIO, size: int, path: Path) -> None:
    """Make sure that the directory is small, and lies right before the end of the file."""
    place, length, end = _directory(stream, size)
    if place + length != end:
        found = f"{length} bytes at {place}, which do not end at {end}"
        refuse(path, "Its archive is broken.", found=found, expected="its directory at the end", fix=AGAIN)
    most = MOST_DIRECTORY * allowance(size)
    if length > most:
        found = f"a directory of {length} bytes"
        refuse(path, "It has too many parts.", found=found, expected=f"at most {most}", fix=SPLIT)


def _directory(stream: BinaryIO, size: int) -> tuple[int, int, int]:
    """Return the place of the directory, its length, and where it has to end; nothing that fits where there is none."""
    end = max(size - _END.size, 0)
    stream.seek(end)
    raw = stream.read(_END.size)
    if len(raw) < _END.size or raw[:4] != b"PK\5\6":
        return 0, 0, size
    *_, length, place, _ = _END.unpack(raw)
    locator = end - _LOCATOR_64.size
    stream.seek(max(locator, 0))
    raw = stream.read(_LOCATOR_64.size)
    if not raw.startswith(b"PK\6\7"):
        return place, length, end
    end = locator - _END_64.size
    stream.seek(max(end, 0))
    raw = stream.read(_END_64.size)
    if not raw.startswith(b"PK\6\6"):
        return 0, 0, size
    *_, length, place = _END_64.unpack(raw)
    return place, length, end


def _check_parts(parts: list[zipfile.ZipInfo], size: int, path: Path) -> None:
    if any(part.filename.endswith("/constants.pkl") for part in parts):
        problem, expected = "It is a program, not a checkpoint.", "tensors by name"
        refuse(path, problem, found="TorchScript", expected=expected, fix=RESAVE)
    packed = [part.filename for part in parts if part.compress_type or part.file_size != part.compress_size]
    if packed:
        problem, expected = "A part of it is compressed.", "parts stored as they are"
        refuse(path, problem, found=shown(packed[0]), expected=expected, fix=RESAVE)
    total = sum(part.file_size for part in parts)
    if total > size:
        problem, expected = "Its parts are larger than the file.", "parts side by side"
        refuse(path, problem, found=f"{total} bytes in {size}", expected=expected, fix=RESAVE)
    for part in parts:
        if part.filename.lower().endswith(".pkl") and part.file_size > MOST_PICKLE:
            found, expected = f"{part.file_size} bytes of {shown(part.filename)}", f"at most {MOST_PICKLE}"
            refuse(path, "It lists too much.", found=found, expected=expected, fix=SPLIT)
