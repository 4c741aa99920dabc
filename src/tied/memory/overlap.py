"""Memory: which tensors lie over the same bytes.

Owns: the bytes of a tensor, and finding overlaps. Must not know modules or names, and never reads a value.
Read next: `checking/groups.py`.

A tensor is one or more pieces: strided pictures of some space of bytes. Two pieces overlap if an element of the
one lies over an element of the other, which is more than that their intervals overlap: columns of a matrix
interleave without touching. The intervals are compared in one sweep; only where two of them overlap, and one has
gaps, the strides are compared too, exactly.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

PLAIN = (torch.nn.Parameter, Tensor)
_STRIDED = torch.strided
_COMPRESSED = (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)


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
    seen to overlap there too. A wrapper (a quantized weight, a DTensor) is what it wraps, a sparse tensor its values.
    """
    if is_lazy(tensor) or not tensor.numel():
        return ()
    inside = _inside(tensor)
    if inside is not None:
        return tuple(piece for inner in inside for piece in pieces(inner))
    return _strided(tensor) if tensor.layout is _STRIDED else ()


def _inside(tensor: Any) -> list[Tensor] | None:
    """Return the tensors that hold the values of a wrapper, or of one that is not strided; None for plain ones.

    Where the values of a sparse or nested tensor belong is left out: copies have that in common.
    """
    if type(tensor) in PLAIN and tensor.layout is _STRIDED and not tensor.is_nested:
        return None
    if tensor.layout is torch.sparse_coo:
        return [tensor._values()]
    if tensor.is_nested or tensor.layout in _COMPRESSED:
        return [tensor.values()]
    local = getattr(tensor, "_local_tensor", None)  # DTensor
    if isinstance(local, Tensor):
        return [local]
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        return None
    return [inner for inner in (getattr(tensor, name, None) for name in flatten()[0]) if isinstance(inner, Tensor)]


def shape_of(tensor: Tensor) -> tuple[int, ...]:
    """Return the shape of a tensor; of a nested one, which has none, that of its values."""
    return tuple(tensor.values().shape if tensor.is_nested else tensor.shape)


def numel(tensor: Tensor) -> int:
    """Return how many numbers a tensor holds; none where it has no shape yet."""
    return tensor.numel() if type(tensor) in PLAIN or not is_lazy(tensor) else 0


def size_of(tensor: Tensor) -> int:
    """Return the bytes of the values of a tensor, all shards together; none where it has no shape yet."""
    if type(tensor) in PLAIN and tensor.layout is _STRIDED:
        return tensor.nbytes
    if is_lazy(tensor):
        return 0
    inside = None if hasattr(tensor, "_local_tensor") else _inside(tensor)
    return tensor.numel() * tensor.element_size() if inside is None else sum(map(size_of, inside))


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


class Spans(NamedTuple):
    """The intervals of some tensors, in no order.

    Attributes:
        starts: First bytes.
        stops: One past the last bytes.
        places: Which tensor each interval is of; a wrapper has several. An object that stands at several positions
            has intervals at the first of them alone.
        sizes: The bytes of each tensor, as if it were stored densely.
        odd: The tensors that are not plain, contiguous memory with an address.
        same: By the first position of an object that stands at several, all of them.
    """

    starts: list[int]
    stops: list[int]
    places: list[int]
    sizes: list[int]
    odd: list[int]
    same: dict[int, list[int]]


def spans(tensors: Sequence[Tensor]) -> Spans:
    """Return the intervals of tensors; what counts its bytes differently is mixed, and told apart later."""
    starts, stops, places, sizes, odd, same = found = Spans([], [], [], [], [], {})
    first: dict[int, int] = {}
    for place, tensor in enumerate(tensors):
        known = first.setdefault(id(tensor), place)
        if known != place:
            same.setdefault(known, [known]).append(place)
            sizes.append(sizes[known])
            continue
        plain = type(tensor) in PLAIN and tensor.layout is _STRIDED and tensor.is_contiguous()
        if plain and (start := tensor.data_ptr()):  # nearly all, so a short way
            size = tensor.nbytes
            sizes.append(size)
            starts.append(start)
            stops.append(start + size)
            places.append(place)
        else:
            odd.append(place)
            sizes.append(size_of(tensor))
            for piece in pieces(tensor):
                starts.append(piece.start)
                stops.append(piece.stop)
                places.append(place)
    odd += [place for known in odd for place in same.get(known, ())[1:]]
    return found


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
    return sharing(tensors, spans(tensors)).groups


class Sharing(NamedTuple):
    """Positions that share.

    Attributes:
        same: Groups of one object.
        overlapping: Groups of several objects.
    """

    same: list[list[int]]
    overlapping: list[list[int]]

    @property
    def groups(self) -> list[list[int]]:
        """All of them, in order."""
        return sorted(self.same + self.overlapping)


def sharing(tensors: Sequence[Tensor], found: Spans) -> Sharing:
    """Return what shares among tensors whose intervals are known."""
    together = _Joined()
    for run in _runs(np.array(found.starts, np.uint64), np.array(found.stops, np.uint64)):
        places = dict.fromkeys([found.places[index] for index in run])
        if len(places) > 1:
            _join(places, tensors, together)
    joined = together.groups()
    several = {place for places in joined for place in places}
    same = [places for first, places in found.same.items() if first not in several]
    return Sharing(same, [sorted(p for place in places for p in found.same.get(place, (place,))) for places in joined])


def _runs(starts: Any, stops: Any) -> Iterator[list[int]]:
    """Sort intervals, and cut them where nothing reaches across; yield the indices of what is more than one."""
    order = np.argsort(starts, kind="stable")
    reach = np.maximum.accumulate(stops[order])
    cuts = np.flatnonzero(starts[order][1:] >= reach[:-1]) + 1
    begins, ends = np.append(0, cuts), np.append(cuts, len(order))
    several, ordered = ends - begins > 1, order.tolist()
    for begin, end in zip(begins[several].tolist(), ends[several].tolist(), strict=True):
        yield ordered[begin:end]


def _join(places: Iterable[int], tensors: Sequence[Tensor], together: _Joined) -> None:
    """Join the tensors among some neighbours that truly overlap."""
    spaces: dict[Hashable, list[tuple[Piece, int]]] = {}
    for place in places:
        for piece in pieces(tensors[place]):
            spaces.setdefault(piece.space, []).append((piece, place))
    for inside in spaces.values():
        if len(spaces) == 1 and all(piece.is_dense for piece, _ in inside):
            together.add(place for _, place in inside)
        elif len(inside) > 1:
            _join_pieces(inside, together)


def _join_pieces(inside: list[tuple[Piece, int]], together: _Joined) -> None:
    """Join the tensors among some pieces of one space that truly overlap."""
    columns = _columns([piece for piece, _ in inside])
    for run in _runs(*np.array(columns, np.uint64).T):
        _join_pairs([(*columns[index], *inside[index]) for index in run], together)


def _columns(found: list[Piece]) -> list[tuple[int, int]]:
    """Return the columns that pieces take of a row, where they have one row length in common; else their intervals.

    Pieces in separate columns do not overlap, so that a buffer of many interleaved columns is no work.
    """
    whole = [(piece.start, piece.stop) for piece in found]
    pitches = {max(piece.strides) for piece in found if not piece.is_dense}
    if len(pitches) != 1:
        return whole
    (pitch,), origin = pitches, min(piece.start for piece in found)
    columns: list[tuple[int, int]] = []
    for piece in found:
        rows = max((n for n, stride in zip(piece.shape, piece.strides, strict=True) if stride == pitch), default=1)
        begin = (piece.start - origin) % pitch
        end = begin + piece.stop - piece.start - (rows - 1) * pitch
        if end > pitch:
            return whole
        columns.append((begin, end))
    return columns


def _join_pairs(run: list[tuple[int, int, Piece, int]], together: _Joined) -> None:
    """Compare what overlaps by its intervals, pair by pair, until all are joined."""
    apart = len(run) - 1
    for index, (_, stop, one, place) in enumerate(run):
        for later in range(index + 1, len(run)):
            start, _, other, another = run[later]
            if start >= stop or not apart:
                break
            if not together.are_one(place, another) and overlap(one, other):
                together.add((place, another))
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
            one, two = self.root(first), self.root(other)
            if one != two:
                self._parent[max(one, two)] = min(one, two)

    def groups(self) -> list[list[int]]:
        found: dict[int, list[int]] = {}
        for position in sorted(self._parent):
            found.setdefault(self.root(position), []).append(position)
        return [group for group in found.values() if len(group) > 1]
