"""The ledger of a file: which names are equal to expressions of others, as JSON in the metadata.

Owns: the key `tied`, as `docs/format.md` specifies it: read, checked against the header, and written. Whatever
the text is, reading it gives a ledger that obeys the law of that page, or a `FileError`. Must not open files.
Read next: `files/models/save.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NoReturn, cast

import torch
from torch import Tensor

from tied.algebra import Address, Expression, Ref, parse, show_address
from tied.algebra.expression import Apply
from tied.algebra.pointwise import Detach, Place
from tied.errors import TieError, short
from tied.files.reading.dtypes import BITS, dtype_name, torch_dtype
from tied.files.reading.refusal import SPLIT, refuse, shown
from tied.files.reading.safetensors_header import byte_count
from tied.files.reading.strict_json import METADATA, check_amount

KEY = "tied"
VERSION = 1
MOST_TIMES, MOST_ANYWAY = 64, 1 << 30  # restoring may take that many times the bytes stored, and that many anyway
MOST_TIES = 40_000
MOST_MARKS = 30_000  # what is no letter and no digit in expressions that are more than a name; long ones count for more
MOST_NAME = 10_000  # characters
MOST_STEPS = 100_000  # transforms inferred, over all equations
_MARKS = re.compile(r"\W")

Spec = tuple[str, tuple[int, ...]]
"""What a header says of a tensor: its dtype and its shape; longer tuples that begin so serve too."""
Layout = Literal["compact", "expanded"]
Kind = Literal["tie", "copy"]


@dataclass(frozen=True)
class Equation:
    """One equation of a file: a name, and the expression over other names that it equals.

    Attributes:
        target: The name of a tensor.
        source: What it equals.
        dtype: The target's dtype, as a header calls it.
        shape: The target's shape.
        kind: `"tie"`: the model computes it so; `"copy"`: the file had a tensor of its own, bit for bit equal.
        at: The target's place among the names of the expanded file; None where it comes last.
    """

    target: str
    source: Expression
    dtype: str
    shape: tuple[int, ...]
    kind: Kind = "tie"
    at: int | None = None

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of the tensors that the source reads, each once."""
        return tuple(dict.fromkeys(name_of(address) for address in self.source.sources()))

    def restore(self, read: Callable[[str], Tensor]) -> Tensor:
        """Compute the target from the tensors that `read` gives by name; it may share their memory."""
        return self.source.compile(lambda address: lambda: read(name_of(address)))()

    def to_json(self) -> dict[str, Any]:
        """Return the entry of `ties`."""
        entry = {"target": self.target, "source": str(self.source), "dtype": self.dtype, "shape": list(self.shape)}
        entry |= {"kind": self.kind} if self.kind != "tie" else {}
        return entry | ({"at": self.at} if self.at is not None else {})


@dataclass(frozen=True)
class Ledger:
    """What a file says is equal in it.

    Attributes:
        layout: `"compact"`: each value stands once; `"expanded"`: every target is stored too.
        ties: The equations.
        bare: Whether the expanded file has no metadata at all.

    Example:
        >>> half = Equation("half.weight", source_of("full.weight[:2]"), "F32", (2, 3))
        >>> text = Ledger("compact", (half,)).to_text()
        >>> text
        '{"version":1,"layout":"compact","ties":[{"target":"half.weight","source":"full.weight[:2]","dtype":"F32","shape":[2,3]}]}'
        >>> read_ledger({"tied": text}, {"full.weight": ("F32", (4, 3))}, "a.safetensors").ties == (half,)
        True
    """

    layout: Layout
    ties: tuple[Equation, ...]
    bare: bool = False

    def missing(self, stored: Iterable[str]) -> dict[str, Equation]:
        """Return the equations whose targets are not stored, by target."""
        known = frozenset(stored)
        return {equation.target: equation for equation in self.ties if equation.target not in known}

    def order(self, stored: Iterable[str]) -> list[str]:
        """Return the names of the expanded file in their order; `stored` are those in the file, in its order."""
        names = list(stored)
        missing = self.missing(names)
        placed = sorted((e.at, name) for name, e in missing.items() if e.at is not None)
        names += [name for name, equation in missing.items() if equation.at is None]
        for at, name in placed:
            names.insert(at, name)
        return names

    def expanded(self) -> Ledger | None:
        """Return the ledger of the expanded file: its ties, without the copies; None where nothing remains."""
        ties = tuple(replace(equation, at=None) for equation in self.ties if equation.kind == "tie")
        return replace(self, layout="expanded", ties=ties, bare=False) if ties else None

    def to_text(self) -> str:
        """Return the JSON for the metadata key `tied`."""
        content = {"version": VERSION, "layout": self.layout, "ties": [equation.to_json() for equation in self.ties]}
        return json.dumps(content | ({"bare": True} if self.bare else {}), ensure_ascii=False, separators=(",", ":"))


def name_of(address: Address) -> str:
    """Return the name of a tensor in a file."""
    return ".".join(address)


def reference(name: str) -> Ref:
    """Return the expression that reads a name.

    Example:
        >>> print(reference("encoder.weight"), reference("a..T"))
        encoder.weight ["a..T"]
    """
    segments = tuple(name.split("."))
    return Ref(segments if all(segments) else (name,))


def source_of(text: str) -> Expression:
    """Read an expression over names; most are plain names, and are not parsed.

    Raises:
        ParseError: `text` is not of the language.
    """
    return _plain(text) or parse(text)


def _plain(text: str) -> Ref | None:
    """Return the expression of a plain name, which is not parsed; None where the text is more, or no name."""
    plain = tuple(text.split(".")) if len(text) <= MOST_NAME else ()
    return Ref(plain) if plain and all(plain) and show_address(plain) == text else None


def values_only(source: Expression) -> Expression:
    """Return a source without `.detach()` and `.to(device)`, which say nothing about values."""
    if not isinstance(source, Apply):
        return source
    first, *rest = map(values_only, source.operands)
    return first if isinstance(source.transform, Detach | Place) else first.apply(source.transform, *rest)


# -- reading ----------------------------------------------------------------------------------------


def read_ledger(metadata: Mapping[str, str] | None, stored: Mapping[str, Any], path: str | Path) -> Ledger | None:
    """Read the ledger of a file, and check it against the tensors that are stored.

    Args:
        metadata: Of the header, or of a folder's index.
        stored: The header's entries by name: tuples that begin with dtype and shape.
        path: The file, for messages.

    Returns:
        The ledger; None where the file has none. The map of safetensors' `save_model` counts as one.

    Raises:
        FileError: The text breaks a rule of the format; the message names the file and the equation.
    """
    text = (metadata or {}).get(KEY)
    if text is None:
        return _map_of_save_model(metadata or {}, stored)
    ledger = _Reader(path).ledger(text)
    check_ledger(ledger, stored, path)
    return ledger


def _map_of_save_model(metadata: Mapping[str, str], stored: Mapping[str, Any]) -> Ledger | None:
    pairs = [(d, k) for d, k in metadata.items() if d not in stored and k in stored and d not in ("format", METADATA)]
    ties = tuple(Equation(dropped, reference(kept), *stored[kept][:2]) for dropped, kept in pairs if kept)
    return Ledger("compact", ties) if ties else None


class _Reader:
    """From text to a ledger, each field of which has the right type."""

    def __init__(self, path: str | Path) -> None:
        self.path = path
        self.marks = 0

    def ledger(self, text: str) -> Ledger:
        content = self.fields(self.json(text), "It", version=int, layout=str, ties=list)
        if content["version"] != VERSION:
            self.refuse("It has another version.", content["version"], str(VERSION), fix="use a newer tied")
        if content["layout"] not in ("compact", "expanded"):
            self.refuse("Its layout is unknown.", content["layout"], "'compact' or 'expanded'")
        if len(content["ties"]) > MOST_TIES:
            self.refuse("It has too many ties.", len(content["ties"]), f"at most {MOST_TIES}", fix=SPLIT)
        bare = content.get("bare", False)
        if not isinstance(bare, bool):
            self.refuse("Its 'bare' is no truth value.", bare, "true or false")
        return Ledger(content["layout"], tuple(map(self.equation, content["ties"])), bare)

    def json(self, text: str) -> Any:
        try:
            check_amount(text, self.path)
            return json.loads(text, object_pairs_hook=self.each_once, parse_constant=self.no_number)
        except (ValueError, RecursionError) as error:
            if isinstance(error, TieError):
                raise
            self.refuse("It is not JSON.", short(str(error)), "the JSON of docs/format.md", raw=True)

    def each_once(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            self.refuse("A key stands twice.", [key for key, _ in pairs], "each key once")
        return dict(pairs)

    def no_number(self, text: str) -> NoReturn:
        self.refuse("A number is none.", text, "whole numbers")

    def equation(self, entry: Any) -> Equation:
        fields = self.fields(entry, "An entry of its ties", target=str, source=str, dtype=str, shape=list)
        target, kind, at = fields["target"], fields.get("kind", "tie"), fields.get("at")
        if not _can_be_written(target) or target == METADATA:
            self.refuse("A target is no name.", target, "a name that a header can hold")
        if kind not in ("tie", "copy"):
            self.refuse(f"The kind of {shown(target)} is unknown.", kind, "'tie' or 'copy'")
        if at is not None and not _is_count(at):
            self.refuse(f"The place of {shown(target)} is none.", at, "a whole number, not negative")
        if fields["dtype"] not in BITS or not all(map(_is_count, fields["shape"])):
            found = f"{fields['dtype']} {fields['shape']}"
            self.refuse(f"{shown(target)} has an impossible dtype or shape.", found, "such as F32 and [784, 256]")
        source = self.source(target, fields["source"])
        return Equation(target, source, fields["dtype"], tuple(fields["shape"]), kind, at)

    def source(self, target: str, text: str) -> Expression:
        plain = _plain(text)
        if plain:
            return plain
        marks = len(_MARKS.findall(text[:MOST_MARKS]))
        self.marks += 4 + marks + marks * marks // 16
        if self.marks > MOST_MARKS:
            problem, expected = "Its expressions are too long.", f"at most {MOST_MARKS} marks in all of them"
            self.refuse(problem, f"at {shown(target)}", expected, fix=SPLIT, raw=True)
        try:
            source = parse(text)
        except TieError as error:
            problem = f"The source of {shown(target)} is no expression."
            self.refuse(problem, short(f"{error.problem} ({error.found})"), "an expression of the language", raw=True)
        if any(isinstance(node, Apply) and isinstance(node.transform, Detach | Place) for node in source.nodes()):
            self.refuse(f"The source of {shown(target)} names a device, or detaches.", text, "values only")
        return source

    def fields(self, value: Any, what: str, **kinds: type) -> dict[str, Any]:
        if not isinstance(value, dict):
            self.refuse(f"{what} is no object.", value, "an object")
        found = cast("dict[str, Any]", value)
        for key, kind in kinds.items():
            if type(found.get(key)) is not kind:
                self.refuse(f"{what} has no proper '{key}'.", found.get(key), _KINDS[kind])
        return found

    def refuse(self, problem: str, found: Any, expected: str, *, fix: str = "", raw: bool = False) -> NoReturn:
        _refuse(self.path, problem, found if raw else shown(found), expected, fix)


_KINDS: dict[type, str] = {int: "a whole number", str: "a text", list: "a list"}


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _can_be_written(name: str) -> bool:
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False


def _refuse(path: str | Path, problem: str, found: str, expected: str, fix: str = "") -> NoReturn:
    otherwise = "tied repair, or safetensors.torch.load_file, which reads what is stored"
    refuse(path, f"Its ledger: {problem}", found=found, expected=expected, fix=fix or otherwise)


# -- checking ---------------------------------------------------------------------------------------


def check_ledger(ledger: Ledger, stored: Mapping[str, Any], path: str | Path) -> None:
    """Check that every equation can be what it says, from the stored tensors, in bounded memory.

    Raises:
        FileError: One cannot.
    """
    _check_names(ledger, stored, path)
    total = sum(byte_count(entry[0], entry[1]) for entry in stored.values())
    most = max(MOST_TIMES * total, MOST_ANYWAY)
    steps = MOST_STEPS
    for equation in ledger.ties:
        steps -= (
            sum(isinstance(node, Apply) for node in equation.source.nodes()) ** 2
        )  # each is inferred from the start
        if steps < 0:
            _refuse(path, "Its expressions are too long.", f"at {shown(equation.target)}", "fewer transforms")
        if all(name in stored for name in equation.names):
            most -= _needed(equation, stored, path)
        if most < 0:
            found = f"{shown(equation.target)} takes {short(str(equation.shape))}, and there is more"
            _refuse(path, "It would fill the memory.", found, f"at most {MOST_TIMES} times what is stored")


def _check_names(ledger: Ledger, stored: Mapping[str, Any], path: str | Path) -> None:
    seen: set[str] = set()
    for equation in ledger.ties:
        target, gone = equation.target, [name for name in equation.names if name not in stored]
        if target in seen:
            _refuse(path, "A target has two equations.", shown(target), "one")
        if target in equation.names:
            _refuse(path, "A target would define itself.", shown(f"{target} = {equation.source}"), "another source")
        seen.add(target)
        if target in stored:
            if tuple(stored[target][:2]) != (equation.dtype, equation.shape):
                found = f"{stored[target][0]} {tuple(stored[target][1])}"
                _refuse(path, f"{shown(target)} is stored as something else.", found, _spec(equation))
        elif gone or ledger.layout == "expanded":
            found = f"no {', '.join(map(shown, gone)) or shown(target)}"
            _refuse(path, f"{shown(target)} is not stored and cannot be restored.", found, shown(str(equation.source)))


def _spec(equation: Equation) -> str:
    return f"{equation.dtype} {short(str(equation.shape))}"


def _needed(equation: Equation, stored: Mapping[str, Any], path: str | Path) -> int:
    """Return the bytes that it takes to compute an equation; refuse one that does not give what it says."""
    source = equation.source
    if isinstance(source, Ref):
        spec = tuple(stored[name_of(source.address)][:2])
        if spec != (equation.dtype, equation.shape):
            _refuse(
                path, f"{shown(equation.target)} is not what its source is.", f"{spec[0]} {spec[1]}", _spec(equation)
            )
        return byte_count(equation.dtype, equation.shape)
    metas = {address: _meta(equation, stored[name_of(address)], path) for address in source.sources()}
    try:
        sizes = [node.infer(metas) for node in source.nodes()]
    except (TieError, RuntimeError, OverflowError) as error:
        what = error.found if isinstance(error, TieError) else str(error)
        _refuse(path, f"{shown(equation.target)} cannot be computed.", short(what), _spec(equation))
    if (dtype_name(sizes[0].dtype), tuple(sizes[0].shape)) != (equation.dtype, equation.shape):
        found = f"{dtype_name(sizes[0].dtype)} {tuple(sizes[0].shape)}"
        _refuse(path, f"{shown(equation.target)} is not what its source is.", found, _spec(equation))
    return max(meta.numel() * meta.element_size() for meta in sizes)


def _meta(equation: Equation, entry: Any, path: str | Path) -> Tensor:
    dtype = torch_dtype(entry[0])
    if dtype is None or entry[0] == "F4":
        _refuse(path, f"torch cannot compute {shown(equation.target)}.", str(entry[0]), "a dtype that torch knows")
    return torch.empty(entry[1], dtype=dtype, device="meta")
