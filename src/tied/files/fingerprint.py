r"""Fingerprints that a tensor and its transpose have in common, without transposing anything.

Owns: samples, and sums that are linear in every axis. Must not open files, nor decide what a match means.
Read next: `duplicates.py`.

**Samples** make candidates: the elements at a few random places. Equal tensors have equal samples, so that
nothing is missed; unequal ones seldom do.

**Sums** settle candidates that lie in memory in different orders. For a matrix `U` of words and random vectors
`r`, `c` the number `rᵀUc` is found in one sequential pass over the rows, and `cᵀUᵀr` is the same number
(R. Freivalds, "Probabilistic machines can use less running time", IFIP 1977). Two different tensors of `n` axes
have the same two sums with probability below `(n / 2¹⁵)²`, whatever the tensors are, because the weights are drawn
anew for each audit: 16 bits each, summed exactly along the first axis, modulo 2⁶⁴ along the others.
"""

from __future__ import annotations

import itertools
import math
import secrets
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tied.files.reader import Words

SAMPLES = 64
SUMS = 2
MOST_ORDERS = 24
CHUNK = 1 << 16  # weights drawn at once
UNIT = 10_000  # the axis of the two halves of an eight-byte word
_WIDE, _ROWS, _EXACT = 8192, 16, 64  # a tile of a megabyte; 31 + 15 + 6 bits fit the 53 of a double

Order = tuple[int, ...]
"""Which axis of the canonical tensor each axis of a tensor is."""
Sums = tuple[int, ...]


def canonical(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape that all permutations of a shape have in common: sorted, without ones.

    Example:
        >>> canonical((50257, 1, 768)), canonical((768, 50257))
        ((768, 50257), (768, 50257))
    """
    return tuple(sorted(size for size in shape if size != 1))


def orders(shape: Sequence[int]) -> list[Order]:
    """Return the ways to lay a tensor, without its axes of size one, over its canonical shape.

    Example:
        >>> orders((5, 3)), orders((4, 4))
        ([(1, 0)], [(0, 1), (1, 0)])
    """
    sizes = [size for size in shape if size != 1]
    places: dict[int, list[int]] = {}
    for place, size in enumerate(sorted(sizes)):
        places.setdefault(size, []).append(place)
    many = math.prod(math.factorial(len(found)) for found in places.values()) > MOST_ORDERS
    choices = [[tuple(found)] if many else list(itertools.permutations(found)) for found in places.values()]
    return sorted({_order(sizes, dict(zip(places, chosen, strict=True))) for chosen in itertools.product(*choices)})


def _order(sizes: Sequence[int], chosen: dict[int, tuple[int, ...]]) -> Order:
    left = {size: iter(places) for size, places in chosen.items()}
    return tuple(next(left[size]) for size in sizes)


def laid(words: Words, order: Order) -> Words:
    """Return a tensor as a view of its canonical shape."""
    return words.squeeze().transpose(np.argsort(order).tolist())


class Fingerprints:
    """The random places and weights of one audit.

    Args:
        seed: Secret, unless a test wants the same places again.
    """

    def __init__(self, seed: int | None = None) -> None:
        self.seed = secrets.randbits(64) if seed is None else seed
        self.places = lru_cache(1024)(self._places)
        self._chunk = lru_cache(16)(self._weights)

    def _places(self, shape: tuple[int, ...]) -> tuple[NDArray[np.int64], ...]:
        draw = np.random.default_rng([self.seed, 1, *shape])
        return tuple(draw.integers(0, size, SAMPLES) for size in shape)

    def sample(self, words: Words, order: Order) -> bytes:
        """Return the elements at the places of the canonical shape, which must not be empty."""
        return laid(words, order)[self.places(canonical(words.shape))].tobytes()

    def row_places(self, nbytes: int, count: int) -> list[int]:
        """Return places of eight bytes in a row of so many bytes, the first of them at its beginning."""
        draw = np.random.default_rng([self.seed, 3, nbytes])
        return [0, *(8 * draw.integers(0, max(nbytes // 8, 1), count - 1)).tolist()] if nbytes >= 8 else [0]

    def _weights(self, axis: int, chunk: int) -> NDArray[np.int64]:
        draw = np.random.default_rng([self.seed, 2, axis, chunk])
        return draw.integers(-(1 << 15), 1 << 15, (SUMS, CHUNK))

    def weights(self, axis: int, start: int, stop: int) -> NDArray[np.int64]:
        """Return the weights of places along a canonical axis: shape `(SUMS, stop - start)`."""
        pieces: list[NDArray[np.int64]] = []
        for chunk in range(start // CHUNK, -(-stop // CHUNK)):
            first = chunk * CHUNK
            pieces.append(self._chunk(axis, chunk)[:, max(start - first, 0) : stop - first])
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=1)

    def sums(self, words: Words, order: Order, rows: slice = slice(None)) -> Sums:
        """Return the sums over some rows of a tensor; those of all rows add up modulo 2⁶⁴.

        Law: `sums(u, order) == sums(u.transpose(p), order permuted by p)`.

        Args:
            words: Contiguous.
            order: Of its axes.
            rows: Of its first axis that is longer than one.
        """
        units, axes = _units(words)
        axes = (*order, *axes)
        first, last, _ = rows.indices(units.shape[0])
        weights = self.weights(axes[0], first, last).astype(np.float64)
        flat = units.reshape(units.shape[0], -1)[first:last]
        total = np.zeros(SUMS, np.uint64)
        for start in range(0, flat.shape[1], _WIDE):
            stop = min(start + _WIDE, flat.shape[1])
            columns = self._columns(axes[1:], units.shape[1:], start, stop)
            total += (_down(flat[:, start:stop], weights).view(np.uint64) * columns.view(np.uint64)).sum(axis=1)
        return tuple(map(int, total))

    def _columns(self, axes: Order, shape: tuple[int, ...], start: int, stop: int) -> NDArray[np.int64]:
        """Return the products of the weights of all axes but the first, for a range of columns."""
        if not axes:
            return np.ones((SUMS, stop - start), np.int64)
        if len(axes) == 1:
            return np.ascontiguousarray(self.weights(axes[0], start, stop))
        product = np.ones((SUMS, stop - start), np.int64)
        places = np.unravel_index(np.arange(start, stop), shape)
        for axis, place in zip(axes, places, strict=True):
            low = int(place.min())
            product *= self.weights(axis, low, int(place.max()) + 1)[:, place - low]
        return product


def _units(words: Words) -> tuple[NDArray[Any], Order]:
    """Return words of at most four bytes, signed where that is faster to convert, and the axis that splitting added."""
    words = words.squeeze()
    if words.dtype.itemsize == 8:
        return words.reshape(*words.shape, 1).view(np.int32), (UNIT,)
    return words.view(np.int32) if words.dtype.itemsize == 4 else words, ()


def _down(tile: NDArray[Any], weights: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the exact weighted sums down the columns: shape `(SUMS, columns)`."""
    rows, columns = tile.shape
    buffer = np.empty((min(_ROWS, rows), columns))
    exact, total = np.zeros((SUMS, columns)), np.zeros((SUMS, columns), np.int64)
    for start in range(0, rows, _ROWS):
        part = buffer[: min(_ROWS, rows - start)]
        np.copyto(part, tile[start : start + _ROWS])
        for number, one in enumerate(weights):
            exact[number] += np.einsum("i,ij->j", one[start : start + _ROWS], part)
        if (start + _ROWS) % _EXACT == 0 or start + _ROWS >= rows:
            total += exact.astype(np.int64)
            exact[:] = 0
    return total


def rows_per(words: Words, nbytes: int) -> Iterator[slice]:
    """Yield slices of rows that hold about so many bytes."""
    rows = words.squeeze().shape[0]
    step = max(1, nbytes * rows // max(words.nbytes, 1))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))
