"""The zip archive that `torch.save` writes, looked at from outside before it is read.

Owns: that nothing in an archive unfolds, overlaps or hides. Must not unpickle. Read next: `pickle_machine.py`.

Readers of archives differ. All take the directory for what it is only where it lies at the end of the file, without
a gap; so nothing else is accepted.
"""

from __future__ import annotations

import struct
import zipfile
from io import BytesIO
from mmap import mmap
from pathlib import Path
from typing import BinaryIO, NoReturn, cast
from zlib import crc32

from tied.errors import FileError, short
from tied.files.reading.refusal import AGAIN, RESAVE, SPLIT, refuse, shown

MOST_DIRECTORY = 1 << 22  # bytes: some 40,000 parts
MOST_PICKLE = 1 << 26
_LOCAL = struct.Struct("<4s22x2H")
_END, _END_64, _LOCATOR_64 = struct.Struct("<4s4H2LH"), struct.Struct("<4sQ2H2L4Q"), struct.Struct("<4sLQL")


def allowance(size: int) -> int:
    """Return how many times the limits hold for a file of this size: once, and once more for each GiB.

    What is large takes long to read anyway, and honest checkpoints with many tensors are large.
    """
    return 1 + (size >> 30)


Places = dict[str, tuple[int, int]]
"""The parts of an archive: where each begins in the file, and how long it is."""


def pickle_in(content: bytes | bytearray | mmap, path: Path) -> tuple[bytes, Places]:
    """Check an archive of `torch.save`; return its pickle, and where its storages lie by their keys.

    Raises:
        FileError: It is none of `torch.save`, or built to fill the memory, or to be read in two ways.
    """
    archive, parts = _opened(content, path)
    found = [name for name in parts if name.lower().endswith("data.pkl")]
    if len(found) != 1:
        refuse(path, "It is no checkpoint.", found=f"{len(found)} parts called data.pkl", expected="one", fix=AGAIN)
    folder = found[0][: -len("data.pkl")]
    order = content[slice(*_span(parts, f"{folder}byteorder"))] or b"little"
    if order != b"little":
        expected = "the smallest byte first"
        refuse(path, "Its bytes lie in another order.", found=shown(str(order)), expected=expected, fix=RESAVE)
    start = f"{folder}data/"
    pickled = _read(archive, found[0], content[slice(*_span(parts, found[0]))], path)
    return pickled, {n.removeprefix(start): at for n, at in parts.items() if n.startswith(start)}


def checkpoints_in(content: bytes | bytearray | mmap, path: Path) -> Places:
    """Return the checkpoints that lie whole in an archive, as stable-baselines3 writes them; none where it is one."""
    _, parts = _opened(content, path)
    inside = {name: place for name, place in parts.items() if name.endswith(".pth")}
    return {} if any(name.lower().endswith("data.pkl") for name in parts) else inside


def _span(parts: Places, name: str) -> tuple[int, int]:
    begin, length = parts.get(name, (0, 0))
    return begin, begin + length


def _opened(content: bytes | bytearray | mmap, path: Path) -> tuple[zipfile.ZipFile, Places]:
    stream = content if isinstance(content, mmap) else BytesIO(content)
    size = len(content)
    _check_directory(cast(BinaryIO, stream), size, path)
    try:
        archive = zipfile.ZipFile(cast(BinaryIO, stream))
        parts = archive.infolist()
        _check_parts(parts, size, path)
        return archive, {part.filename: _place(content, part, path) for part in parts}
    except _BROKEN as error:
        _refuse_broken(error, path)


def _read(archive: zipfile.ZipFile, name: str, raw: bytes | bytearray, path: Path) -> bytes:
    if crc32(raw) != archive.getinfo(name).CRC:
        said = f"other bytes of {shown(name)} than were written"
        refuse(path, "Its archive is broken.", found=said, expected="a whole zip archive", fix=AGAIN)
    return bytes(raw)


_BROKEN = (zipfile.BadZipFile, ValueError, NotImplementedError, OSError, EOFError, RuntimeError)


def _refuse_broken(error: Exception, path: Path) -> NoReturn:
    if isinstance(error, FileError):
        raise error
    said = short(ascii(str(error) or type(error).__name__))
    refuse(path, "Its archive is broken.", found=said, expected="a whole zip archive", fix=AGAIN)


def _place(content: bytes | bytearray | mmap, part: zipfile.ZipInfo, path: Path) -> tuple[int, int]:
    """Return where a part begins, and its length."""
    head = content[part.header_offset : part.header_offset + _LOCAL.size]
    begin = part.header_offset + _LOCAL.size
    if len(head) == _LOCAL.size and head[:4] == b"PK\3\4":
        begin += sum(_LOCAL.unpack(head)[-2:])
        if begin + part.file_size <= len(content):
            return begin, part.file_size
    found = f"{part.file_size} bytes at {part.header_offset} of {shown(part.filename)}"
    refuse(path, "Its archive is broken.", found=found, expected="a part inside the file", fix=AGAIN)


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
    locked = [part.filename for part in parts if part.flag_bits & 1]
    if locked:
        refuse(
            path, "A part of it is encrypted.", found=shown(locked[0]), expected="parts stored as they are", fix=RESAVE
        )
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
