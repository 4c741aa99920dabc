"""View-linear transforms: those that only move, repeat or drop entries, named as torch names them.

Owns: one row per torch method (its arguments, its adjoint), indexing, and how two of them merge.
Must not do arithmetic. Read next: `arithmetic.py`.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tied.algebra.expression import Expression
from tied.algebra.transform import POSTFIX, Printable, Transform, spelled
from tied.errors import ParseError, short

Shape = Sequence[int]
Arguments = tuple[Any, ...]  # integers, or tuples of integers


class Row(NamedTuple):
    """What the language knows about one torch method."""

    arguments: Callable[..., Arguments]  # the signature, which also brings the arguments into one form
    adjoint: Callable[..., Tensor]  # (cotangent, shape of the operand, *arguments) -> cotangent of the operand


def _sizes(keyword: str) -> Callable[..., Arguments]:
    """Make a signature that takes whole numbers one by one, as one tuple, or by keyword."""

    def arguments(*sizes: Any, **named: Any) -> Arguments:
        if named.keys() == {keyword} and not sizes:
            sizes, named = (named[keyword],), {}
        if len(sizes) == 1 and isinstance(sizes[0], tuple | list):
            sizes = tuple(sizes[0])
        if named or any(isinstance(size, tuple | list) for size in sizes):
            raise TypeError
        return sizes

    return arguments


def _negative(shifts: int | tuple[int, ...]) -> int | tuple[int, ...]:
    return -shifts if isinstance(shifts, int) else tuple(-shift for shift in shifts)


def _unpermute(y: Tensor, shape: Shape, *dims: int) -> Tensor:
    order = [dim % len(dims) for dim in dims]
    return y.permute([order.index(dim) for dim in range(len(dims))])


def _unrepeat(y: Tensor, shape: Shape, *repeats: int) -> Tensor:
    sizes = [1] * (len(repeats) - len(shape)) + list(shape)
    pairs = [size for pair in zip(repeats, sizes, strict=True) for size in pair]
    return y.reshape(pairs).sum(dim=list(range(0, len(pairs), 2))).reshape(tuple(shape))


def _uninterleave(y: Tensor, shape: Shape, repeats: int, dim: int) -> Tensor:
    dim = dim % len(shape)
    return y.reshape([*shape[: dim + 1], repeats, *shape[dim + 1 :]]).sum(dim=dim + 1)


def _unnarrow(y: Tensor, shape: Shape, dim: int, start: int, length: int) -> Tensor:
    whole = y.new_zeros(shape)
    whole.narrow(dim, start, length).copy_(y)
    return whole


def _back(y: Tensor, shape: Shape, *_: object) -> Tensor:
    return y.reshape(tuple(shape))


ROWS: dict[str, Row] = {
    "T": Row(lambda: (), lambda y, shape: y.t()),
    "mT": Row(lambda: (), lambda y, shape: y.mT),
    "transpose": Row(lambda dim0, dim1: (dim0, dim1), lambda y, shape, a, b: y.transpose(a, b)),
    "permute": Row(_sizes("dims"), _unpermute),
    "reshape": Row(_sizes("shape"), _back),
    "flatten": Row(
        lambda start_dim=0, end_dim=-1: () if (start_dim, end_dim) == (0, -1) else (start_dim, end_dim), _back
    ),
    "unflatten": Row(lambda dim, sizes: (dim, tuple(sizes)), _back),
    "squeeze": Row(lambda dim=None: () if dim is None else (dim,), _back),
    "unsqueeze": Row(lambda dim: (dim,), _back),
    "expand": Row(_sizes("size"), lambda y, shape, *_: y.sum_to_size(tuple(shape))),
    "repeat": Row(_sizes("repeats"), _unrepeat),
    "repeat_interleave": Row(lambda repeats, dim: (repeats, dim), _uninterleave),
    "flip": Row(_sizes("dims"), lambda y, shape, *dims: y.flip(dims)),
    "roll": Row(
        lambda shifts, dims=None: (shifts,) if dims is None else (shifts, dims),
        lambda y, shape, shifts, *dims: y.roll(_negative(shifts), *dims),
    ),
    "narrow": Row(lambda dim, start, length: (dim, start, length), _unnarrow),
}
ALIASES = frozenset(["T", "mT", "transpose", "permute", "unflatten", "squeeze", "unsqueeze", "expand", "narrow"])
SIZED = frozenset(["permute", "reshape", "expand", "repeat", "flip"])  # take their arguments as one tuple
TUPLED = frozenset(["unflatten", "squeeze", "roll"])  # one of their arguments may be a tuple
SAME = {"t": "T", "view": "reshape"}  # two spellings of one map
LARGEST = 2**62  # torch cuts longer numbers off


@dataclass(frozen=True)
class View(Transform):
    """A torch method that moves, repeats or drops entries, with its arguments.

    Law: forward(x) == getattr(x, name)(*arguments); exact.
    """

    name: str
    arguments: Arguments = ()

    sparse = True
    exact = True

    @property
    def aliases(self) -> bool:
        """True for the methods that never copy."""
        return self.name in ALIASES

    def forward(self, *operands: Tensor) -> Tensor:
        """Return the rearranged tensor; a view where torch gives one."""
        return self.function()(operands[0])

    def function(self) -> Callable[..., Tensor]:
        """Return the torch method itself, with its arguments bound."""
        if self.name in ("T", "mT"):
            return torch.Tensor.t if self.name == "T" else _matrix_transpose
        method, arguments = getattr(torch.Tensor, self.name), self.arguments
        if self.name in SIZED:
            return lambda x: method(x, arguments)
        return lambda x: method(x, *arguments)

    def infer(self, *operands: Tensor) -> Tensor:
        """Apply torch's shape rule; `.T` is for matrices only."""
        if self.name == "T" and operands[0].dim() != 2:
            raise RuntimeError(f".T expects a matrix, got {operands[0].dim()} dimensions; see .mT and .permute")
        return self.forward(*operands)

    def adjoint(self, cotangent: Tensor, *operands: Tensor) -> tuple[Tensor, ...]:
        """Send every entry of the result back to where it came from, and sum."""
        return (ROWS[self.name].adjoint(cotangent, operands[0].shape, *self.arguments),)

    def text(self, operands: Sequence[Printable]) -> str:
        """Print as a method call on the operand."""
        base = f"{operands[0].text(POSTFIX)}.{self.name}"
        return base if self.name in ("T", "mT") else f"{base}({', '.join(map(repr, self.arguments))})"

    def after(self, inner: Transform) -> Sequence[Transform] | None:
        """Move constants outward, and merge with the view below."""
        if inner.uniform:
            return self, inner
        return _merge(inner, self) if isinstance(inner, View) else None


def _matrix_transpose(x: Tensor) -> Tensor:
    return x.mT


def view(name: str, *args: Any, **kwargs: Any) -> View:
    """Make the view that a torch call such as `x.transpose(0, 1)` names, in its one canonical form.

    Raises:
        ParseError: the arguments do not fit torch's signature.
    """
    name = SAME.get(name, name)
    try:
        whole = _whole if name in TUPLED else _integer
        arguments = tuple(whole(value) for value in ROWS[name].arguments(*args, **kwargs))
    except (TypeError, ValueError) as error:
        shown = ", ".join([*map(repr, args), *(f"{k}={v!r}" for k, v in kwargs.items())])
        raise ParseError(
            f".{name} was called with arguments that it does not take.",
            found=short(f".{name}({shown})"),
            expected=f"the arguments of torch.Tensor.{name}, whole numbers only",
            fix=f"see the documentation of torch.Tensor.{name}",
        ) from error
    if name == "transpose" and set(arguments) == {-1, -2}:
        return View("mT")
    if name == "permute" and arguments in ((1, 0), (-1, 0), (1, -2), (-1, -2)):
        return View("T")
    return View(name, arguments)


def _method(name: str) -> Callable[..., Expression]:
    def method(expression: Expression, *args: Any, **kwargs: Any) -> Expression:
        return expression.apply(view(name, *args, **kwargs))

    method.__name__, method.__doc__ = name, f"Return `.{name}(...)` of an expression, as torch does."
    return method


for _name in [*ROWS, *SAME]:
    spelled(_name)(_method(_name))


def _whole(value: Any) -> int | tuple[int, ...]:
    """Return a whole number, or a tuple of them, as plain integers."""
    if isinstance(value, tuple | list):
        return tuple(_integer(item) for item in value)
    return _integer(value)


def _integer(value: Any) -> int:
    number = int(value) if not isinstance(value, bool) and isinstance(value, numbers.Integral) else LARGEST
    if abs(number) >= LARGEST:
        raise TypeError
    return number


def _merge(inner: View, outer: View) -> Sequence[Transform] | None:
    pair = inner.name, outer.name
    if pair in (("T", "T"), ("mT", "mT")) or (pair == ("unsqueeze", "squeeze") and inner.arguments == outer.arguments):
        return ()
    if pair in (("transpose", "transpose"), ("flip", "flip")) and sorted(inner.arguments) == sorted(outer.arguments):
        return ()
    if outer.name == "reshape" and inner.name in ("reshape", "flatten", "unflatten", "squeeze", "unsqueeze"):
        return (outer,)
    rule = _MERGES.get(outer.name) if pair[0] == pair[1] else None
    return rule(inner.arguments, outer.arguments) if rule else None


def _merge_permute(inner: Arguments, outer: Arguments) -> Sequence[Transform] | None:
    if not (_is_order(inner) and _is_order(outer) and len(inner) == len(outer)):
        return None
    dims = tuple(inner[dim] % len(inner) for dim in outer)
    return () if dims == tuple(range(len(dims))) else (view("permute", *dims),)


def _is_order(dims: Arguments) -> bool:
    rank = len(dims)
    return all(-rank <= dim < rank for dim in dims) and len({dim % rank for dim in dims}) == rank


def _merge_roll(inner: Arguments, outer: Arguments) -> Sequence[Transform] | None:
    if inner[1:] != outer[1:] or not isinstance(inner[0], int) or not isinstance(outer[0], int):
        return None
    shift = inner[0] + outer[0]
    if abs(shift) >= LARGEST:
        return None
    return (View("roll", (shift, *inner[1:])),) if shift else ()


def _merge_narrow(inner: Arguments, outer: Arguments) -> Sequence[Transform] | None:
    (dim, start, length), (outer_dim, offset, part) = inner, outer
    fits = dim == outer_dim and min(start, offset, part) >= 0 and offset + part <= length < LARGEST - start
    return (View("narrow", (dim, start + offset, part)),) if fits else None


MOST_AXES = 64  # of a torch tensor
_MERGES = {"permute": _merge_permute, "roll": _merge_roll, "narrow": _merge_narrow}


class Span(NamedTuple):
    """A slice `start:stop:step`, as a hashable value."""

    start: int | None = None
    stop: int | None = None
    step: int | None = None

    def __str__(self) -> str:
        """Print as Python writes it."""
        text = f"{_blank(self.start)}:{_blank(self.stop)}"
        return text if self.step is None else f"{text}:{self.step}"


def _blank(number: int | None) -> str:
    return "" if number is None else str(number)


Item = Any  # int, Span, Ellipsis or None, as in x[0, 1:3, ..., None]


@dataclass(frozen=True)
class Index(Transform):
    """Slices and integers: `x[2:5, ..., 0]`. Steps are positive, as torch asks.

    Law: forward(x) == x[items]; exact.
    """

    items: tuple[Item, ...]

    sparse = True
    exact = True

    @property
    def key(self) -> tuple[Any, ...]:
        """The items as torch takes them."""
        return tuple(slice(*item) if isinstance(item, Span) else item for item in self.items)

    @property
    def aliases(self) -> bool:
        """Slices and integers select views."""
        return True

    def forward(self, *operands: Tensor) -> Tensor:
        """Return the selected entries, as a view."""
        return operands[0][self.key]

    def adjoint(self, cotangent: Tensor, *operands: Tensor) -> tuple[Tensor, ...]:
        """Put the entries back where they were; zero elsewhere."""
        whole = cotangent.new_zeros(operands[0].shape)
        whole[self.key] = cotangent
        return (whole,)

    def text(self, operands: Sequence[Printable]) -> str:
        """Print as a subscript."""
        shown = ("..." if item is Ellipsis else str(item) for item in self.items)
        return f"{operands[0].text(POSTFIX)}[{', '.join(shown)}]"

    def after(self, inner: Transform) -> Sequence[Transform] | None:
        """Move constants outward, and merge slices of slices."""
        if inner.uniform:
            return self, inner
        items = _merge_items(inner.items, self.items) if isinstance(inner, Index) else None
        return None if items is None else (Index(items),)


def index(key: Any) -> Index:
    """Make the index that `x[key]` names.

    Raises:
        ParseError: an item is neither a whole number, a slice with a positive step, `...` nor `None`.
    """
    items = tuple(_item(item) for item in (key if isinstance(key, tuple) else (key,)))
    if items.count(Ellipsis) > 1:
        raise _bad_item("...", "at most one `...`")
    return Index(items or (Ellipsis,))


def _item(item: Any) -> Item:
    if item is Ellipsis or item is None:
        return item
    parts = (item.start, item.stop, item.step) if isinstance(item, slice) else (item,)
    try:
        start, *rest = (None if part is None else _integer(part) for part in parts)
    except TypeError as error:
        raise _bad_item(item, "whole numbers, slices, `...`, `None`, or the address of one index buffer") from error
    if not rest:
        return start
    stop, step = rest
    if step is not None and step < 1:
        raise _bad_item(f"step {step}", "a positive step; `.flip(dim)` turns an axis round")
    return Span(start or None, stop, None if step == 1 else step)


def _bad_item(item: Any, expected: str) -> ParseError:
    return ParseError(
        "This cannot stand between [ and ].",
        found=short(str(item)),
        expected=expected,
        fix="select with slices, or with the address of an integer buffer: theta[index]",
    )


def _merge_items(inner: tuple[Item, ...], outer: tuple[Item, ...]) -> tuple[Item, ...] | None:
    if len(inner) + len(outer) > MOST_AXES or not all(_is_plain(item) for item in inner + outer):
        return None
    merged, rest = list[Item](), list(outer)
    for item in inner:
        both = _merge_item(item, rest.pop(0)) if isinstance(item, Span) and rest else item
        if both is None or not _is_plain(both):
            return None
        merged.append(both)
    return (*merged, *rest)


def _is_plain(item: Item) -> bool:
    parts = item if isinstance(item, Span) else (item,)
    return item is not Ellipsis and item is not None and all(n is None or 0 <= n < LARGEST for n in parts)


def _merge_item(span: Span, item: Item) -> Item:
    start, step, stop = span.start or 0, span.step or 1, math.inf if span.stop is None else span.stop
    if not isinstance(item, Span):
        place = start + item * step
        return place if place < stop else None
    end = min(stop, math.inf if item.stop is None else start + item.stop * step)
    first, stride = start + (item.start or 0) * step, step * (item.step or 1)
    return Span(first or None, None if end == math.inf else int(max(end, first)), stride if stride != 1 else None)
