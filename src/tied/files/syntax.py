"""The JSON that a safetensors header may hold, and no other.

Owns: the scan of the text, in one pass that stops at the first offence. Must not know what makes a tensor
valid: that is `header.py`, which calls this.

A scan of our own, because `json` takes what must be refused (a name twice, NaN, any depth) and builds all
of it before anything can be refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, cast

from tied.errors import short
from tied.files.refusal import SPLIT, refuse, shown

MOST_NAMES = 200_000
MOST_SIZE = (1 << 63) - 1
METADATA = "__metadata__"
ENTRY = "an object with dtype, shape and data_offsets, each once"

_INT = "(?:0|[1-9][0-9]{0,17})"
_WS = r"[ \t\n\r]*"
_COLON, _COMMA = f"{_WS}:{_WS}", f"{_WS},{_WS}"
_SIZES = rf"\[{_WS}((?:{_INT}(?:{_COMMA}{_INT}){{0,63}})?){_WS}\]"
_USUAL_ENTRY = re.compile(
    rf'{_WS}\{{{_WS}"dtype"{_COLON}"([A-Z0-9_]+)"{_COMMA}"shape"{_COLON}{_SIZES}'
    rf'{_COMMA}"data_offsets"{_COLON}\[{_WS}({_INT}){_COMMA}({_INT}){_WS}\]{_WS}\}}'
)
_ANY_ENTRY = re.compile(rf"{_WS}(\{{[^{{}}]{{0,8192}}\}})")
_USUAL_TEXT = re.compile(rf'{_WS}"([^"\\\x00-\x1f]*)"')
_MARK = re.compile(rf"{_WS}(.)")
_decode = json.JSONDecoder().raw_decode


class Entry(NamedTuple):
    """One tensor of a header: its dtype, its shape, and its bytes, counted from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        """The number of bytes of the tensor."""
        return self.end - self.begin


def scan(text: str, path: str | Path) -> tuple[dict[str, Entry], dict[str, str] | None]:
    """Return the entries of a header by name, well-formed but not checked, and its metadata where it has any.

    Raises:
        FileError: Naming the file, the place and the offence.
    """
    found = _Scan(text, path)
    tensors: dict[str, Entry] = {}
    metadata: dict[str, str] | None = None
    for name in found.members("the header"):
        if name == METADATA:
            metadata = {key: found.string(f"a text of {METADATA}") for key in found.members(METADATA)}
        else:
            tensors[name] = found.entry(name)
    if text[found.at :].strip(" \t\n\r"):
        found.refuse("Something follows the JSON of its header.", "spaces only")
    return tensors, metadata


class _Scan:
    """A place in the text, and the pieces that may stand there."""

    def __init__(self, text: str, path: str | Path) -> None:
        self.text, self.path, self.at = text, path, 0

    def members(self, where: str) -> Iterator[str]:
        """Yield the names of an object; the caller reads the value of each before it asks for the next."""
        self.mark("{", where)
        seen: set[str] = set()
        if self.is_next("}"):
            self.mark("}", where)
            return
        while True:
            name = self.string(f"a name in {where}")
            if name in seen:
                refuse(self.path, f"A name stands twice in {where}.", found=shown(name), expected="each name once")
            seen.add(name)
            if len(seen) > MOST_NAMES:
                problem, found = f"Too many names stand in {where}.", f"more than {MOST_NAMES}"
                refuse(self.path, problem, found=found, expected=f"at most {MOST_NAMES}", fix=SPLIT)
            self.mark(":", where)
            yield name
            if self.mark(",}", where) == "}":
                return

    def entry(self, name: str) -> Entry:
        usual = _USUAL_ENTRY.match(self.text, self.at)
        if not usual:
            return self.unusual_entry(name)
        self.at = usual.end()
        dtype, sizes, begin, end = usual.groups()
        return Entry(dtype, tuple(map(int, sizes.split(","))) if sizes else (), int(begin), int(end))

    def unusual_entry(self, name: str) -> Entry:
        """Read an entry whose keys have another order, or say what is wrong with it."""
        where = f"The entry of tensor {shown(name)}"
        piece = _ANY_ENTRY.match(self.text, self.at)
        if not piece or piece[1].count("[") > 2:
            self.refuse(f"{where} cannot be read.", ENTRY)
        try:
            pairs = cast(list[tuple[str, Any]], json.loads(piece[1], object_pairs_hook=list))
        except ValueError:
            self.refuse(f"{where} is not JSON.", ENTRY)
        fields, keys = dict(pairs), sorted(key for key, _ in pairs)
        if keys != ["data_offsets", "dtype", "shape"]:
            self.refuse(f"{where} has the keys {short(ascii(keys))}.", ENTRY)
        if not isinstance(fields["dtype"], str):
            self.refuse(f"{where} has no text for its dtype.", "a name such as 'F32'")
        if not _are_sizes(fields["shape"]):
            self.refuse(f"{where} has no list of sizes for its shape.", "whole numbers from 0 to 2**63 - 1")
        if not _are_sizes(fields["data_offsets"]) or len(fields["data_offsets"]) != 2:
            self.refuse(f"{where} has no place for its data_offsets.", "two whole numbers from 0 to 2**63 - 1")
        self.at = piece.end()
        return Entry(fields["dtype"], tuple(fields["shape"]), *fields["data_offsets"])

    def string(self, what: str) -> str:
        usual = _USUAL_TEXT.match(self.text, self.at)
        if usual:
            self.at = usual.end()
            return usual[1]
        if not self.is_next('"'):
            self.refuse(f"{what} is missing.".capitalize(), "a text in quotes")
        try:
            found, self.at = _decode(self.text, self.text.index('"', self.at))
            found.encode()
        except UnicodeEncodeError:
            self.refuse(f"Half a character stands in {what}.", "valid Unicode")
        except ValueError:
            self.refuse(f"{what} is not a valid text.".capitalize(), "a text in quotes, escaped as JSON wants it")
        return found

    def mark(self, wanted: str, where: str) -> str:
        """Go past one of these characters, and spaces before it."""
        found = _MARK.match(self.text, self.at)
        if not found or found[1] not in wanted:
            self.refuse(f"The JSON of {where} breaks off.", " or ".join(repr(one) for one in wanted))
        self.at = found.end()
        return found[1]

    def is_next(self, wanted: str) -> bool:
        found = _MARK.match(self.text, self.at)
        return bool(found) and found[1] == wanted

    def refuse(self, problem: str, expected: str) -> NoReturn:
        here = self.text[self.at : self.at + 40]
        found = f"{here!a} at character {self.at}" if here else f"its end, at character {self.at}"
        refuse(self.path, problem, found=found, expected=expected)


def _are_sizes(value: object) -> bool:
    return isinstance(value, list) and all(
        type(size) is int and 0 <= size <= MOST_SIZE for size in cast(list[object], value)
    )
