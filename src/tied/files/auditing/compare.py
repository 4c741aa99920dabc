"""Exact comparison of bytes in memory, at the speed of reading them.

Owns: `memcmp` and what is built on it. Must not know what the bytes mean. Read next: `duplicates.py`.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

TILE = 1 << 18  # of the first of a set; the others are compared with it while it is in the cache
RANGE = 1 << 25  # of one piece of work
BLOCK = 250  # not a power of two: rows of a block would fall into few sets of the cache

_memcmp = ctypes.CDLL(None if os.name == "posix" else "msvcrt").memcmp
_memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_memcmp.restype = ctypes.c_int

Sets = list[list[int]]
Array = NDArray[Any]


def address(array: Array) -> int:
    """Return where the bytes of an array begin; keep the array alive while you use it."""
    return int(array.__array_interface__["data"][0])


def same_bytes(one: Array, other: Array) -> bool:
    """Tell whether two contiguous arrays of one size have the same bytes.

    Example:
        >>> same_bytes(np.array([float("nan"), 0.0]), np.array([float("nan"), 0.0]))
        True
        >>> same_bytes(np.array([0.0]), np.array([-0.0]))
        False
    """
    return _memcmp(address(one), address(other), one.nbytes) == 0


def is_constant(array: Array) -> bool:
    """Tell whether all elements of a contiguous array have the same bits.

    Example:
        >>> is_constant(np.ones((3, 4))), is_constant(np.arange(3))
        (True, False)
    """
    first = address(array)
    size = array.dtype.itemsize
    return array.nbytes <= size or _memcmp(first, first + size, array.nbytes - size) == 0


def ranges(nbytes: int) -> Iterator[tuple[int, int]]:
    """Cut so many bytes into pieces of work."""
    for start in range(0, nbytes, RANGE):
        yield start, min(start + RANGE, nbytes)


def split(arrays: Sequence[Array], start: int, stop: int) -> Sets:
    """Return the sets of contiguous arrays, as positions, that agree in the bytes from `start` to `stop`."""
    places = [address(array) for array in arrays]
    sets = [list(range(len(arrays)))]
    for tile in range(start, stop, TILE):
        size = min(TILE, stop - tile)
        sets = [part for one in sets for part in _split_tile([places[i] + tile for i in one], one, size)]
        if len(sets) == len(arrays):
            break
    return sets


def _split_tile(places: list[int], members: list[int], size: int) -> Sets:
    found: list[tuple[int, list[int]]] = []
    for place, member in zip(places, members, strict=True):
        for known, part in found:
            if _memcmp(known, place, size) == 0:
                part.append(member)
                break
        else:
            found.append((place, [member]))
    return [part for _, part in found]


def meet(many: Sequence[Sets]) -> Sets:
    """Return the sets of positions that are together in every one of several splits of them.

    Example:
        >>> meet([[[0, 1, 2], [3]], [[0, 2, 3], [1]]])
        [[0, 2], [1], [3]]
    """
    labels: dict[int, tuple[int, ...]] = {}
    for sets in many:
        for label, members in enumerate(sets):
            for member in members:
                labels[member] = (*labels.get(member, ()), label)
    together: dict[tuple[int, ...], list[int]] = {}
    for member in sorted(labels):
        together.setdefault(labels[member], []).append(member)
    return list(together.values())


def same_elements(one: Array, other: Array) -> bool:
    """Compare two arrays of one shape element by element, however they lie in memory, block by block.

    A block of the second is first copied as it lies: its rows may be so far apart that they would chase each other
    out of the cache.
    """
    if one.ndim < 2:
        return bool(np.array_equal(one, other))
    if one.ndim > 2:
        return all(same_elements(a, b) for a, b in zip(one, other, strict=True))
    return all(
        np.array_equal(one[i : i + BLOCK, j : j + BLOCK], np.array(other[i : i + BLOCK, j : j + BLOCK], order="K"))
        for i in range(0, one.shape[0], BLOCK)
        for j in range(0, one.shape[1], BLOCK)
    )
