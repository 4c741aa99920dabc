"""Memory: which tensors lie over the same bytes.

Owns: the bytes of a tensor, and finding overlaps. Must not know modules or names, and never reads a value.
Read next: `groups.py`.

A tensor is one or more pieces: strided pictures of some space of bytes. Two pieces overlap if an element of the
one lies over an element of the other, which is more than that their intervals overlap: columns of a matrix
interleave without touching. The intervals are compared in one sweep; only where two of them overlap, and one has
gaps, the strides are compared too, exactly.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

Interval = tuple[int, int, int]  # first byte, one past the last, and which tensor it is

PLAIN = (torch.nn.Parameter, Tensor)


class Piece(NamedTuple):
    """A strided picture of bytes: element `i` lies at `start + i · strides`, in bytes.

    Attributes:
        start: The first byte.
        stop: One past the last byte.
        space: What the bytes are counted in: a device, or one storage where nothing has an address.
        shape: In elements.
        strides: In bytes.
        itemsize: Bytes of an element.
    """

    start: int
    stop: int
    space: Hashable
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    itemsize: int

    @property
    def is_dense(self) -> bool:
        """Whether the elements fill the interval, without a gap."""
        reach = self.itemsize
        for size, stride in sorted(zip(self.shape, self.strides, strict=True), key=lambda dim: dim[1]):
            if stride > reach and size > 1:
                return False
            reach += (size - 1) * stride
        return True


def pieces(tensor: Tensor) -> tuple[Piece, ...]:
    """Return the bytes of a tensor; nothing where they cannot be seen, or there are none.

    A tensor on meta has no address: its bytes are counted in its storage, so that views of one storage are
    seen to overlap there too. A wrapper (a quantized weight, a DTensor) is what it wraps.
    """
    if is_lazy(tensor) or not tensor.numel():
        return ()
    if type(tensor) not in PLAIN:
        inside = _inside(tensor)
        if inside is not None:
            return tuple(piece for inner in inside for piece in pieces(inner))
    if tensor.layout is not torch.strided:
        return ()
    return _strided(tensor)


def _inside(tensor: Any) -> list[Tensor] | None:
    """Return the tensors that a wrapper holds; None where it is no wrapper."""
    local = getattr(tensor, "_local_tensor", None)  # DTensor
    if isinstance(local, Tensor):
        return [local]
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        return None
    return [inner for inner in (getattr(tensor, name, None) for name in flatten()[0]) if isinstance(inner, Tensor)]


def _strided(tensor: Tensor) -> tuple[Piece, ...]:
    itemsize = tensor.element_size()
    try:
        storage = tensor.untyped_storage()
        start, space = int(tensor.storage_offset()) * itemsize, storage._cdata
        if not (tensor.is_meta or hasattr(tensor, "fake_mode")) and storage.data_ptr():
            start, space = tensor.data_ptr(), tensor.device
        if not storage.nbytes():
            return ()
    except (RuntimeError, NotImplementedError):  # no bytes of its own: opaque tensors
        return ()
    shape = tuple(tensor.shape)
    strides = tuple(int(stride) * itemsize for stride in tensor.stride())
    last = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    return (Piece(start, start + last + itemsize, space, shape, strides, itemsize),)


def overlap(one: Piece, other: Piece) -> bool:
    """Tell whether two pieces have a byte in common, exactly."""
    if one.space != other.space or one.stop <= other.start or other.stop <= one.start:
        return False
    if one.is_dense and other.is_dense:
        return True
    base = min(one.start, other.start)
    return np.shares_memory(_picture(one, base), _picture(other, base))


class _Described:
    """What numpy reads an array from. The address is made up: numpy compares addresses, and reads none."""

    def __init__(self, interface: dict[str, Any]) -> None:
        self.__array_interface__ = interface


def _picture(piece: Piece, base: int) -> np.ndarray[Any, Any]:
    shape, strides = piece.shape, piece.strides
    interface = {"shape": shape, "strides": strides, "typestr": f"|V{piece.itemsize}", "version": 3}
    return np.asarray(_Described({**interface, "data": (piece.start - base + 4096, True)}))


def overlapping(tensors: Sequence[Tensor]) -> list[list[int]]:
    """Return the groups of two or more tensors that are joined by overlaps, as positions in order.

    Tensors are joined if they overlap, or if a chain of overlaps leads from one to the other. One sweep over the
    intervals, sorted by their first byte, with the furthest end so far: `O(n log n)`.

    Example:
        >>> buffer = torch.zeros(12)
        >>> overlapping([buffer[:8], buffer[2:4], buffer[6:12], torch.zeros(3)])
        [[0, 1, 2]]
        >>> matrix = buffer.view(3, 4)
        >>> overlapping([matrix[:, :2], matrix[:, 2:]])
        []
    """
    spaces: dict[Hashable, list[Interval]] = {}
    for position, tensor in enumerate(tensors):
        if type(tensor) in PLAIN and tensor.is_contiguous() and not tensor.is_meta:  # nearly all, so a short way
            start = tensor.data_ptr()
            spaces.setdefault(tensor.device, []).append((start, start + tensor.nbytes, position))
        else:
            for piece in pieces(tensor):
                spaces.setdefault(piece.space, []).append((piece.start, piece.stop, position))
    joined = _Joined()
    for intervals in spaces.values():
        intervals.sort()
        for run in _runs(intervals):
            _join(run, tensors, joined)
    return joined.groups()


def _runs(intervals: list[Interval]) -> Iterable[list[Interval]]:
    """Cut sorted intervals where nothing reaches across; yield what is more than one interval."""
    begin, reach = 0, -1
    for index, (start, stop, _) in enumerate(intervals):
        if start >= reach:
            if index - begin > 1:
                yield intervals[begin:index]
            begin = index
        if stop > reach:  # not `max`, which would take as long as all else here
            reach = stop
    if len(intervals) - begin > 1:
        yield intervals[begin:]


def _join(run: list[Interval], tensors: Sequence[Tensor], joined: _Joined) -> None:
    """Join the tensors of one run of intervals that truly overlap."""
    low, high = run[0][0], max(stop for _, stop, _ in run)
    inside = [(p, n) for n in dict.fromkeys(n for _, _, n in run) for p in pieces(tensors[n])]
    inside = [item for item in inside if low <= item[0].start and item[0].stop <= high]
    if all(piece.is_dense for piece, _ in inside):
        joined.add(position for _, position in inside)
        return
    columns = _columns([piece for piece, _ in inside])
    for column in _runs(sorted(columns)):
        _join_pairs(column, inside, joined)


def _columns(found: list[Piece]) -> list[Interval]:
    """Return the columns that pieces take of a row, where they have one row length in common; else their intervals.

    Pieces in separate columns do not overlap, so that a buffer of many interleaved columns is no work.
    """
    whole = [(piece.start, piece.stop, index) for index, piece in enumerate(found)]
    pitches = {max(piece.strides) for piece in found if not piece.is_dense}
    if len(pitches) != 1:
        return whole
    (pitch,), origin = pitches, min(piece.start for piece in found)
    columns: list[Interval] = []
    for index, piece in enumerate(found):
        rows = max((n for n, stride in zip(piece.shape, piece.strides, strict=True) if stride == pitch), default=1)
        begin = (piece.start - origin) % pitch
        end = begin + piece.stop - piece.start - (rows - 1) * pitch
        if end > pitch:
            return whole
        columns.append((begin, end, index))
    return columns


def _join_pairs(column: list[Interval], found: list[tuple[Piece, int]], joined: _Joined) -> None:
    """Compare what overlaps by its intervals, pair by pair, until all are joined."""
    apart = len(column) - 1
    for index, (_, stop, one) in enumerate(column):
        for later in range(index + 1, len(column)):
            start, _, other = column[later]
            if start >= stop or not apart:
                break
            positions = found[one][1], found[other][1]
            if not joined.are_one(*positions) and overlap(found[one][0], found[other][0]):
                joined.add(positions)
                apart -= 1


class _Joined:
    """Sets of positions that grow together (union-find)."""

    def __init__(self) -> None:
        self._parent: dict[int, int] = {}

    def root(self, position: int) -> int:
        parent = self._parent.setdefault(position, position)
        while parent != position:
            self._parent[position] = self._parent[parent]
            position, parent = parent, self._parent[parent]
        return position

    def are_one(self, one: int, other: int) -> bool:
        return self.root(one) == self.root(other)

    def add(self, positions: Iterable[int]) -> None:
        first, *others = positions
        for other in others:
            one, two = sorted((self.root(first), self.root(other)))
            self._parent[two] = one

    def groups(self) -> list[list[int]]:
        found: dict[int, list[int]] = {}
        for position in sorted(self._parent):
            found.setdefault(self.root(position), []).append(position)
        return [group for group in found.values() if len(group) > 1]
