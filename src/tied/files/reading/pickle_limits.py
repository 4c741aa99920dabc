"""What it would take to unpickle something, counted before anything is unpickled.

Owns: the count. Must not make any object of a pickle. Read next: `pt_file.py`.

torch's reader with `weights_only=True` runs no code, but does what it is told as often as it is told: a few bytes of a
pickle can hash a tuple that holds itself 2**40 times, or ask for a gigabyte of zeros. Here the same
instructions are gone through with sizes in the place of objects: the size of a tuple is that of all in it.
"""

from __future__ import annotations

import contextlib
from mmap import mmap
from pathlib import Path
from typing import Any

from tied.files.reading.refusal import RESAVE, SPLIT, refuse, shown

MOST_STEPS = 1_000_000  # some 11,000 tensors, and less than a second
LARGEST = 1 << 60
MOST_NAME = 1000
CALL, STORAGE = 8, 10  # what they take, in instructions
_PLAIN = {b"N"[0]: 0, b")"[0]: 0, 0x88: 0, 0x89: 0, b"K"[0]: 1, b"M"[0]: 2, b"J"[0]: 4, b"G"[0]: 8}
_TUPLES = {0x85: 1, 0x86: 2, 0x87: 3}


def check_pickles(raw: bytes | mmap, path: Path, *, pickles: int = 1, times: int = 1) -> None:
    """Refuse what would take too long, or too much memory, to unpickle.

    Args:
        raw: Pickles, one after another, and whatever follows them.
        path: The file, for messages.
        pickles: How many of them torch reads.
        times: How many times the usual number of instructions is allowed.

    Raises:
        FileError: It would.
    """
    count = _Count(raw, path, MOST_STEPS * times)
    with contextlib.suppress(IndexError, KeyError):  # it takes what is not there: torch will say so, at the same place
        for _ in range(pickles):
            count.run()


class _Count:
    """The machine of a pickle: its stacks hold sizes; a list of one size is a thing that may still grow."""

    def __init__(self, raw: bytes | mmap, path: Path, most: int) -> None:
        self.raw, self.path, self.most = raw, path, most
        self.at = self.steps = 0
        self.stack = list[Any]()
        self.below = list[list[Any]]()
        self.memo = dict[int, Any]()
        self.encodes = False

    def run(self) -> None:
        """Go through the instructions of one pickle, up to the first that torch does not know."""
        self.stack, self.below, self.memo = [], [], {}
        raw, memo, end = self.raw, self.memo, len(self.raw)
        while self.at < end:
            code = raw[self.at]
            self.at += 1
            self.steps += 1
            if self.steps > self.most:
                self.refuse()
            if code == 0x71:  # BINPUT
                memo[raw[self.at]] = self.stack[-1]
                self.at += 1
            elif code == 0x68:  # BINGET
                self.stack.append(memo[raw[self.at]])
                self.at += 1
            elif code in _PLAIN:
                self.stack.append(1)
                self.at += _PLAIN[code]
            elif code in _TUPLES:
                self.tuple(_TUPLES[code])
            elif code == 0x2E:  # STOP
                return
            elif not self.rare(chr(code)):
                self.at = end

    def rare(self, code: str) -> bool:
        """Do one of the other instructions; tell whether there is such a one."""
        method = _METHODS.get(code)
        if method:
            method(self)
        return method is not None

    def number(self, width: int) -> int:
        """Read a number, and go past it."""
        self.at += width
        return int.from_bytes(self.raw[self.at - width : self.at], "little")

    def take(self, steps: int) -> None:
        self.steps += steps
        if self.steps > self.most:
            self.refuse()

    def refuse(self) -> None:
        refuse(
            self.path,
            "It would take too long to unpickle.",
            found=f"more than {self.most} steps",
            expected="less, in a file of this size",
            fix=SPLIT,
        )

    # -- what is made

    def tuple(self, count: int) -> None:
        parts = self.stack[-count:]
        del self.stack[-count:]
        self.stack.append(_total(parts, count))

    def marked_tuple(self) -> None:
        parts = self.marked()
        self.stack.append(_total(parts, len(parts)))

    def marked(self) -> list[Any]:
        parts, self.stack = self.stack, self.below.pop()
        return parts

    def mark(self) -> None:
        self.take(1)
        self.below.append(self.stack)
        self.stack = []

    def container(self) -> None:
        self.take(3)
        self.stack.append([1])

    def text(self, width: int) -> None:
        length = self.number(width)
        self.at += length
        self.take(length >> 6)
        self.stack.append(1 + (length >> 4))

    def protocol(self) -> None:
        self.take(3)
        self.at += 1

    def get(self) -> None:
        self.stack.append(self.memo[self.number(4)])

    def put_next(self) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def put(self) -> None:
        self.memo[self.number(4)] = self.stack[-1]

    def add(self, parts: list[Any], keys: list[Any]) -> None:
        """Let what lies on the stack grow; keys are hashed."""
        there = self.stack[-1]
        if isinstance(there, list):
            there[0] = _total([there, *parts], 0)
        self.take(_total(keys, 0))

    # -- what is done

    def name(self) -> None:
        """Read what is to be called: its module and its name, a line each."""
        middle = self.raw.find(b"\n", self.at, self.at + MOST_NAME)
        end = self.raw.find(b"\n", middle + 1, middle + MOST_NAME)
        if min(middle, end) < 0:
            raise IndexError
        name = self.raw[middle + 1 : end].decode(errors="replace")
        if name == "bytearray":
            expected = "tensors and plain values"
            refuse(self.path, "It asks for memory of any size.", found=shown(name), expected=expected, fix=RESAVE)
        self.encodes |= name == "encode"
        self.take(3)
        self.at = end + 1
        self.stack.append(name)

    def named(self) -> None:
        self.take(3)
        self.stack.pop()
        self.stack[-1] = ""

    def call(self) -> None:
        size = _size(self.stack.pop())
        coded = self.encodes and self.stack[-1] in ("encode", "_rebuild_from_type_v2")
        self.take(CALL + (size * size if coded else size))  # some codecs take the square of the length
        self.stack[-1] = [size]

    def storage(self) -> None:
        self.take(STORAGE + _size(self.stack.pop()))
        self.stack.append(1)

    def build(self) -> None:
        size = _size(self.stack.pop())
        self.take(CALL + size)
        self.add([size], [])


def _size(thing: Any) -> int:
    return thing if type(thing) is int else thing[0] if type(thing) is list else 1


def _total(parts: list[Any], more: int) -> int:
    return min(sum(map(_size, parts)) + more, LARGEST)


def _append(count: _Count) -> None:
    count.add([count.stack.pop()], [])


def _set_item(count: _Count) -> None:
    value, key = count.stack.pop(), count.stack.pop()
    count.add([key, value], [key])


def _set_items(count: _Count) -> None:
    parts = count.marked()
    count.add(parts, parts[::2])


def _appends(count: _Count) -> None:
    count.add(count.marked(), [])


_METHODS = {
    "(": _Count.mark,
    "t": _Count.marked_tuple,
    "]": _Count.container,
    "}": _Count.container,
    "\x8f": _Count.container,
    "a": _append,
    "e": _appends,
    "s": _set_item,
    "u": _set_items,
    "X": lambda count: count.text(4),
    "U": lambda count: count.text(1),
    "\x8a": lambda count: count.text(1),
    "j": _Count.get,
    "r": _Count.put,
    "c": _Count.name,
    "R": _Count.call,
    "\x81": _Count.call,
    "Q": _Count.storage,
    "b": _Count.build,
    "\x80": _Count.protocol,
    "\x8c": lambda count: count.text(1),
    "\x93": _Count.named,
    "\x94": _Count.put_next,
    "\x95": lambda count: count.number(8),
}
