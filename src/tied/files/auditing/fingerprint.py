r"""Fingerprints that a tensor and its transpose have in common, without transposing anything.

Owns: samples, and sums that are linear in every axis. Must not open files, nor decide what a match means.
Read next: `duplicates.py`.

**Samples** make candidates: the elements at a few random places. Equal tensors have equal samples, so that
nothing is missed; unequal ones seldom do.

**Sums** settle candidates that lie in memory in different orders. For a matrix `U` of words and random vectors
`r`, `c` the number `rᵀUc` is found in one walk over the rows, and `cᵀUᵀr` is the same number (R. Freivalds,
"Probabilistic machines can use less running time", IFIP 1977). All is modulo 2⁶⁴, with weights of 64 bits that are
drawn anew for each audit. Where a difference is `2ᵗ` times something odd, `t < 32`, contracting an axis leaves
`2ᵗ⁺ᵏ` or more of it with probability `2⁻ᵏ`; so two different matrices have one sum with probability below
`(65 - t) / 2⁶⁴⁻ᵗ < 4e-9`, whatever they are, and tensors of more axes, of which two sums are taken, below 1e-10.
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

from tied.files.reading.stored import Words

SAMPLES = 64
SUMS = 2  # of a tensor with more than two axes
MOST_ORDERS = 24
CHUNK = 1 << 16  # weights drawn at once
UNIT = 10_000  # the axis of the two halves of an eight-byte word
_WIDE = 1 << 20  # columns

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

    def _weights(self, axis: int, chunk: int) -> NDArray[np.uint64]:
        draw = np.random.default_rng([self.seed, 2, axis, chunk])
        return draw.integers(0, 1 << 64, (SUMS, CHUNK), np.uint64)

    def weights(self, axis: int, start: int, stop: int) -> NDArray[np.uint64]:
        """Return the weights of places along a canonical axis: shape `(SUMS, stop - start)`."""
        pieces: list[NDArray[np.uint64]] = []
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
        first, last, _ = rows.indices(len(units))
        many = SUMS if units.ndim > 2 else 1
        weights = self.weights(axes[0], first, last)[:many]
        flat = units.reshape(len(units), -1)[first:last]
        total = [0] * many
        for start in range(0, flat.shape[1], _WIDE):
            stop = min(start + _WIDE, flat.shape[1])
            columns = self._columns(axes[1:], units.shape[1:], start, stop)
            for number in range(many):
                down = column_sums(flat[:, start:stop], weights[number])
                total[number] += int(np.einsum("j,j", down, columns[number]))
        return tuple(one % 2**64 for one in total)

    def _columns(self, axes: Order, shape: tuple[int, ...], start: int, stop: int) -> NDArray[np.uint64]:
        """Return the products of the weights of all axes but the first, for a range of columns."""
        if not axes:
            return np.ones((SUMS, stop - start), np.uint64)
        if len(axes) == 1:
            return self.weights(axes[0], start, stop)
        product = np.ones((SUMS, stop - start), np.uint64)
        places = np.unravel_index(np.arange(start, stop), shape)
        for axis, place in zip(axes, places, strict=True):
            low = int(place.min())
            product *= self.weights(axis, low, int(place.max()) + 1)[:, place - low]
        return product


def _units(words: Words) -> tuple[NDArray[Any], Order]:
    """Return words of at most four bytes, and the axis that splitting longer ones added."""
    words = words.squeeze()
    if words.dtype.itemsize == 8:
        return words.reshape(*words.shape, 1).view(np.uint32), (UNIT,)
    return words, ()


def column_sums(words: Words, weights: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return `weights @ words` modulo 2⁶⁴, several words at a time.

    Eight bytes are the number `w₀ + 2ᵇw₁ + 2²ᵇw₂ …` of words of `b` bits. Of the weighted sums `y` of such numbers,
    taken at every column, that of a word alone is `x[j] = y[j] - 2ᵇ y[j + 1]`. No word is widened in memory.

    Args:
        words: Of at most four bytes; shape `(rows, columns)`, the columns next to each other in memory.
        weights: Shape `(rows,)`.

    Example:
        >>> column_sums(np.arange(6, dtype=np.uint16).reshape(2, 3), np.array([1, 10], np.uint64))
        array([30, 41, 52], dtype=uint64)
    """
    columns, size = words.shape[1], words.dtype.itemsize
    packed = 8 // size
    alone = min(columns, packed)  # no eight bytes begin at the last columns, nor after them
    sums = np.empty(columns, np.uint64)
    sums[columns - alone :] = np.einsum("i,ij->j", weights, words[:, columns - alone :].astype(np.uint64))
    if columns > packed:
        together = np.empty(columns - packed + 1, np.uint64)
        for first in range(packed):
            whole = (columns - first) // packed * packed
            numbers = words[:, first : first + whole].view(np.uint64)
            together[first::packed] = np.einsum("i,ij->j", weights, numbers)
        sums[: columns - packed] = together[:-1] - (together[1:] << np.uint64(8 * size))
    return sums


def rows_per(words: Words, nbytes: int) -> Iterator[slice]:
    """Yield slices of rows that hold about so many bytes."""
    rows = words.squeeze().shape[0]
    step = max(1, nbytes * rows // max(words.nbytes, 1))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))
