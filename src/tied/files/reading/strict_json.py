"""The JSON that a safetensors header may hold, and no other.

Owns: the scan of the text, in one pass that stops at the first offence. Must not know what makes a tensor
valid: that is `safetensors_header.py`, which calls this.

A scan of our own, because `json` takes what must be refused (a name twice, NaN, any depth) and builds all
of it before anything can be refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container
from itertools import permutations
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, cast

from tied.errors import short
from tied.files.reading.refusal import SPLIT, refuse, shown

MOST_PIECES = 1_000_000
MOST_TEXTS = 50_000
MOST_ODD = 20_000
MOST_SIZE = (1 << 63) - 1
METADATA = "__metadata__"
ENTRY = "an object with dtype, shape and data_offsets, each once"

_INT = "(?:0|[1-9][0-9]{0,17})"
_WS = r"[ \t\n\r]*"
_COLON, _COMMA = f"{_WS}:{_WS}", f"{_WS},{_WS}"
_FIELDS = (
    rf'"dtype"{_COLON}"(?P<dtype>[A-Z0-9_]+)"',
    rf'"shape"{_COLON}\[{_WS}(?P<sizes>(?:{_INT}(?:{_COMMA}{_INT}){{0,63}})?){_WS}\]',
    rf'"data_offsets"{_COLON}\[{_WS}(?P<begin>{_INT}){_COMMA}(?P<end>{_INT}){_WS}\]',
)
_FORMS = [rf"{_WS}\{{{_WS}{_COMMA.join(fields)}{_WS}\}}" for fields in permutations(_FIELDS)]
_ENTRIES = [re.compile(form) for form in _FORMS]
_MEMBERS = [re.compile(rf'{_WS}"([^"\\\x00-\x1f]*)"{_COLON}{form}{_COMMA}') for form in _FORMS]
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
    check_amount(text, path)
    found = _Scan(text, path)
    tensors: dict[str, Entry] = {}
    metadata: dict[str, str] | None = None
    more = found.begins("the header")
    while more:
        found.usual_members(tensors)
        name = found.name("the header", tensors)
        if name == METADATA:
            if metadata is not None:
                found.refuse_twice(name, "the header")
            metadata = found.texts()
        else:
            tensors[name] = found.entry(name)
        more = found.goes_on("the header")
    if text[found.at :].strip(" \t\n\r"):
        found.refuse("Something follows the JSON of its header.", "spaces only")
    return tensors, metadata


def check_amount(text: str, path: str | Path) -> None:
    """Refuse a JSON text that holds too many things: each but the first needs a comma or a bracket before it."""
    found = sum(map(text.count, ",[{"))
    if found > MOST_PIECES:
        expected = f"at most {MOST_PIECES}, which is 100,000 tensors"
        refuse(path, "It lists too much.", found=f"{found} commas and brackets", expected=expected, fix=SPLIT)


class _Scan:
    """A place in the text, and the pieces that may stand there."""

    def __init__(self, text: str, path: str | Path) -> None:
        self.text, self.path, self.at = text, path, 0
        self.odd = 0

    def begins(self, where: str) -> bool:
        """Go into an object; tell whether anything is in it."""
        self.mark("{", where)
        return not self.is_next("}") or self.mark("}", where) != "}"

    def goes_on(self, where: str) -> bool:
        """Tell whether another member of the object follows."""
        return self.mark(",}", where) == ","

    def name(self, where: str, known: Container[str]) -> str:
        name = self.string(f"a name in {where}")
        if name in known:
            self.refuse_twice(name, where)
        self.mark(":", where)
        return name

    def usual_members(self, tensors: dict[str, Entry]) -> None:
        """Take all tensors that are written as they usually are, up to the last or to one that is not."""
        for form in _MEMBERS:  # one writer has one order
            while usual := form.match(self.text, self.at):
                name = usual[1]
                if name in tensors or name == METADATA:
                    return
                tensors[name] = _entry(*usual.group("dtype", "sizes", "begin", "end"))
                self.at = usual.end()

    def texts(self) -> dict[str, str]:
        """Take an object of texts."""
        found: dict[str, str] = {}
        more = self.begins(METADATA)
        while more:
            name = self.name(METADATA, found)
            found[name] = self.string(f"a text of {METADATA}")
            if len(found) > MOST_TEXTS:
                problem, count = f"Too many names stand in {METADATA}.", f"more than {MOST_TEXTS}"
                refuse(self.path, problem, found=count, expected=f"at most {MOST_TEXTS}", fix=SPLIT)
            more = self.goes_on(METADATA)
        return found

    def entry(self, name: str) -> Entry:
        for form in _ENTRIES:
            if usual := form.match(self.text, self.at):
                self.at = usual.end()
                return _entry(*usual.group("dtype", "sizes", "begin", "end"))
        return self.unusual_entry(name)

    def unusual_entry(self, name: str) -> Entry:
        """Read an entry that is written in some other way, or say what is wrong with it."""
        where = f"The entry of tensor {shown(name)}"
        self.count_odd()
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
        self.count_odd()
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

    def count_odd(self) -> None:
        """Count what takes long to read, and is rare."""
        self.odd += 1
        if self.odd > MOST_ODD:
            problem, expected = "Too much of it is written in ways of its own.", "names without escapes, usual entries"
            self.refuse(problem, expected)

    def refuse_twice(self, name: str, where: str) -> NoReturn:
        refuse(self.path, f"A name stands twice in {where}.", found=shown(name), expected="each name once")

    def refuse(self, problem: str, expected: str) -> NoReturn:
        here = self.text[self.at : self.at + 40]
        found = f"{here!a} at character {self.at}" if here else f"its end, at character {self.at}"
        refuse(self.path, problem, found=found, expected=expected)


def _entry(dtype: str, sizes: str, begin: str, end: str) -> Entry:
    return Entry(dtype, tuple(map(int, sizes.split(","))) if sizes else (), int(begin), int(end))


def _are_sizes(value: object) -> bool:
    return isinstance(value, list) and all(
        type(size) is int and 0 <= size <= MOST_SIZE for size in cast(list[object], value)
    )
