"""The header of a safetensors file: read, checked to the last byte, and written.

Owns: what a valid header is. Must not read tensors or know what a tie is. Read next: `checkpoint.py`.

A file is eight bytes with the length of the header, the header (JSON, padded with spaces), and the tensors,
back to back: https://github.com/huggingface/safetensors#format. Whatever this file accepts, safetensors
accepts with the same meaning; it is stricter in four ways: a name stands once, an entry holds nothing
unknown, a shape has at most 64 sizes, and a header has at most 32 MiB and a million commas and brackets, which is
some 100,000 tensors.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

from tied.errors import short
from tied.files.reading.dtypes import BITS
from tied.files.reading.refusal import AGAIN, OTHER, SPLIT, refuse, shown
from tied.files.reading.regular_file import open_regular
from tied.files.reading.strict_json import METADATA, Entry, scan

MOST_BYTES = 1 << 25
MOST_DIMS = 64
MOST_ELEMENTS = 1 << 63


@dataclass(frozen=True)
class Header:
    """What the header of a safetensors file says.

    Attributes:
        tensors: The entries by name, in the header's order.
        metadata: The texts under `__metadata__`; `None` where the header has no such key.

    Example:
        >>> header = Header.of({"w": ("F32", (2, 3)), "n": ("I64", ())}, {"format": "pt"})
        >>> header.tensors["n"]
        Entry(dtype='I64', shape=(), begin=24, end=32)
        >>> parse_header(header.to_bytes()[8:], 32, "a.safetensors") == header
        True
    """

    tensors: Mapping[str, Entry]
    metadata: Mapping[str, str] | None = None

    @classmethod
    def of(cls, specs: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str] | None = None) -> Header:
        """Lay tensors of these dtypes and shapes back to back, in this order."""
        tensors: dict[str, Entry] = {}
        begin = 0
        for name, (dtype, shape) in specs.items():
            end = begin + byte_count(dtype, shape)
            tensors[name] = Entry(dtype, tuple(shape), begin, end)
            begin = end
        return cls(tensors, metadata)

    @property
    def data_bytes(self) -> int:
        """The number of bytes of all tensors together."""
        return max((entry.end for entry in self.tensors.values()), default=0)

    def by_offset(self) -> list[str]:
        """Return the names in the order in which the tensors lie in the file."""
        return sorted(self.tensors, key=lambda name: self.tensors[name][2:])

    def to_bytes(self) -> bytes:
        """Write the length and the header, byte for byte as safetensors writes it."""
        content: dict[str, Any] = {} if self.metadata is None else {METADATA: dict(self.metadata)}
        for name, (dtype, shape, begin, end) in self.tensors.items():
            content[name] = {"dtype": dtype, "shape": shape, "data_offsets": (begin, end)}
        text = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text


def byte_count(dtype: str, shape: Iterable[int]) -> int:
    """Return how many bytes a tensor takes; an error where a size is impossible or a byte would be shared.

    Example:
        >>> byte_count("BF16", (3, 5)), byte_count("F4", (3, 2)), byte_count("F32", ())
        (30, 3, 4)
    """
    elements = 1
    for size in shape:
        elements *= size
        if size < 0 or elements >= MOST_ELEMENTS:
            raise ValueError("more elements than can be counted" if size >= 0 else "a negative size")
    bits = elements * BITS[dtype]
    if bits % 8 or bits >= 8 * MOST_ELEMENTS:
        raise ValueError("a last byte that is not full" if bits % 8 else "more bytes than can be counted")
    return bits // 8


def read_header(path: str | Path) -> tuple[Header, int]:
    """Read and check the header of a file; return it with the number of bytes before the first tensor.

    Raises:
        FileError: The file is not a valid safetensors file.
        OSError: It cannot be opened.
    """
    with open_regular(path) as stream:
        return read_header_of(stream, path)


def read_header_of(stream: BinaryIO, path: str | Path) -> tuple[Header, int]:
    """Do the same for a file that is open already."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    start = stream.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8:
        found = f"{size} bytes"
        refuse(path, "It is too short to be a safetensors file.", found=found, expected="at least 8 bytes", fix=AGAIN)
    if length > MOST_BYTES:
        refuse(
            path, "Its header is too long.", found=f"{length} bytes", expected=f"at most {MOST_BYTES} bytes", fix=SPLIT
        )
    if 8 + length > size:
        found, expected = f"{size} bytes in the file", f"at least 8 + {length} bytes"
        refuse(path, "It ends within its header.", found=found, expected=expected, fix=AGAIN)
    return parse_header(stream.read(length), size - 8 - length, path), 8 + length


def parse_header(raw: bytes, data_bytes: int, path: str | Path) -> Header:
    """Check the bytes of a header against the number of bytes that follow it.

    Args:
        raw: The header without its length.
        data_bytes: How many bytes follow.
        path: The file, for messages.

    Raises:
        FileError: Naming the file, the tensor and the offence.
    """
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        found = f"{error.reason} at byte {error.start} of the header"
        refuse(path, "Its header is not UTF-8.", found=found, expected="UTF-8")
    tensors, metadata = scan(text, path)
    for name, entry in tensors.items():
        _check_entry(name, entry, path)
    _check_places(tensors, data_bytes, path)
    return Header(MappingProxyType(tensors), None if metadata is None else MappingProxyType(metadata))


def _check_entry(name: str, entry: Entry, path: str | Path) -> None:
    """Make sure that the entry, taken alone, can be a tensor."""
    dtype, shape, begin, end = entry
    if dtype not in BITS:
        problem = f"The dtype of tensor {shown(name)} is unknown."
        refuse(path, problem, found=shown(dtype), expected=f"one of {', '.join(BITS)}")
    where = f"{dtype} of shape {short(str(shape))}"
    if len(shape) > MOST_DIMS:
        problem = f"Tensor {shown(name)} has too many dimensions."
        refuse(path, problem, found=f"{len(shape)}", expected=f"at most {MOST_DIMS}")
    try:
        needed = byte_count(dtype, shape)
    except ValueError as error:
        problem = f"Tensor {shown(name)} has {error}."
        refuse(path, problem, found=where, expected="a shape that whole bytes below 2**63 can hold")
    if needed != end - begin:
        problem = f"The place of tensor {shown(name)} does not fit its shape."
        found = f"{where}, data_offsets from {begin} to {end}"
        refuse(path, problem, found=found, expected=f"a place of {needed} bytes")


def _check_places(tensors: Mapping[str, Entry], data_bytes: int, path: str | Path) -> None:
    """Make sure that the tensors lie back to back and fill the file."""
    here, last = 0, "the header"
    for name, (_, _, begin, end) in sorted(tensors.items(), key=lambda item: item[1][2:]):
        if begin != here:
            problem = "Two tensors overlap." if begin < here else "Bytes between tensors belong to none."
            found = f"{shown(name)} begins at {begin}, {last} ends at {here}"
            refuse(path, problem, found=found, expected="tensors back to back")
        here, last = end, shown(name)
    if here != data_bytes:
        cut = here > data_bytes
        problem = "It is shorter than its header says." if cut else "Bytes at its end belong to no tensor."
        found, expected = f"{data_bytes} bytes of tensors", f"{here} bytes, where {last} ends"
        refuse(path, problem, found=found, expected=expected, fix=AGAIN if cut else OTHER)
