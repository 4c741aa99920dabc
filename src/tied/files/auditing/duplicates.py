"""Tensors of a checkpoint that are the same tensor, up to the order of their axes.

Owns: the search, from shapes to samples to bytes. Must not judge what it finds. Read next: `fused_rows.py`.

Law: two tensors of one dtype are found together exactly if one of them, its axes permuted and its axes of size
one left out, has the other's bits. Constants are left out: equal zeros and ones are no news. Nothing is read
of a tensor whose shape no other one has, whatever the order of sizes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from tied.files.auditing.compare import RANGE, is_constant, meet, ranges, same_elements, split
from tied.files.auditing.fingerprint import SAMPLES, Fingerprints, Order, canonical, laid, orders, rows_per
from tied.files.auditing.workers import Workers
from tied.files.reading.dtypes import BITS
from tied.files.reading.stored import Stored, Words

IDENTITY = "identity"
WIDTHS = (8, 16, 32, 64)  # others come as rows of bytes: their axes are not seen
READERS = re.compile(r"head|decoder|output|classif|predict|generator")


@dataclass(frozen=True)
class Copies:
    """Names of one tensor, and what each is of the first: `"identity"`, `".T"`, `".permute(1, 2, 0)"` ..."""

    names: tuple[str, ...]
    transforms: tuple[str, ...]


class _Member(NamedTuple):
    """A tensor in the order in which it lies in memory.

    Attributes:
        name: Of the tensor.
        words: Contiguous.
        order: The canonical axis of each axis of `words`.
        axes: The canonical axis of each axis of the tensor, without those of size one.
        shape: Of the tensor.
    """

    name: str
    words: Words
    order: Order
    axes: Order
    shape: tuple[int, ...]


_Sets = list[list[_Member]]


class Search:
    """One search through the tensors of a checkpoint.

    Args:
        workers: Who reads.
        prints: Samples and sums.
        prove: Compare element by element what the sums found.
    """

    def __init__(self, workers: Workers, prints: Fingerprints, *, prove: bool = False) -> None:
        self.workers, self.prints, self.prove = workers, prints, prove

    def copies(self, tensors: Mapping[str, Stored]) -> list[Copies]:
        """Return the groups of two names or more, in the order of the checkpoint."""
        place = {name: number for number, name in enumerate(tensors)}
        groups = [group for bucket in buckets(tensors) for group in self.candidates(bucket)]
        compared = [[self.compare(part) for part in _by_order(group)] for group in groups]
        joined = [self.join(list(chain.from_iterable(finish() for finish in parts))) for parts in compared]
        found = [whole for finish in joined for whole in finish() if len(whole) > 1]
        named = [_named(sorted(whole, key=lambda member: _rank(member.name, place))) for whole in found]
        return sorted(named, key=lambda one: place[one.names[0]])

    def candidates(self, bucket: Mapping[str, Stored]) -> list[list[_Member]]:
        """Return the tensors of one canonical shape by equal samples; constants and singles are left out."""
        found: dict[bytes, list[tuple[str, Words, list[Order]]]] = {}
        for name, stored in bucket.items():
            words = stored.words()
            samples = {order: self.prints.sample(words, order) for order in orders(words.shape)}
            least = min(samples.values())
            fitting = [order for order, sample in samples.items() if sample == least]
            found.setdefault(least, []).append((name, words, fitting))
        groups: list[list[_Member]] = []
        for sample, alike in found.items():
            if len(alike) > 1:
                flat = sample == sample[: len(sample) // SAMPLES] * SAMPLES
                groups.append(
                    [one for name, words, fitting in alike for one in self.member(name, words, fitting, flat)]
                )
        return groups

    def member(self, name: str, words: Words, fitting: list[Order], flat: bool) -> Iterable[_Member]:
        """Settle the order of a candidate; nothing where it is constant."""
        lying, turn = _as_it_lies(words)
        if flat and is_constant(lying):
            return
        choices = [(_turned(axes, turn), axes) for axes in fitting]
        if len(choices) > 1:  # the samples are symmetric: the sums decide, alike for every copy
            choices = [min(choices, key=lambda choice: (self.prints.sums(lying, choice[0]), choice))]
        ((order, axes),) = choices
        yield _Member(name, lying, order, axes, words.shape)

    def compare(self, part: list[_Member]) -> Callable[[], _Sets]:
        """Start to split members that lie alike into those of equal bytes."""
        arrays = [member.words for member in part]
        size = arrays[0].nbytes
        work = [self.workers.start(size, split, arrays, *piece) for piece in ranges(size)] if len(part) > 1 else []
        return lambda: [[part[i] for i in places] for places in meet([w.result() for w in work])] if work else [part]

    def join(self, sets: _Sets) -> Callable[[], _Sets]:
        """Start to join the sets whose firsts lie in different orders and are the same, by their sums or elements."""
        if len({members[0].order for members in sets}) < 2:
            return lambda: sets
        if self.prove:
            return lambda: list(self.proven(sets))
        work = [self.sum_up(members[0]) for members in sets]

        def finish() -> _Sets:
            found: dict[tuple[int, ...], list[_Member]] = {}
            for members, parts in zip(sets, work, strict=True):
                sums = zip(*(part.result() for part in parts), strict=True)
                found.setdefault(tuple(sum(one) % 2**64 for one in sums), []).extend(members)
            return list(found.values())

        return finish

    def proven(self, sets: _Sets) -> Iterator[list[_Member]]:
        """Join the sets whose elements are the same: all that are like the first of them, then of those left over."""
        while sets:
            first, *others = sets
            work = [self.same(first[0], members[0]) for members in others]
            alike = [all(part.result() for part in parts) for parts in work]
            yield [*first, *chain.from_iterable(members for members, same in zip(others, alike, strict=True) if same)]
            sets = [members for members, same in zip(others, alike, strict=True) if not same]

    def same(self, one: _Member, other: _Member) -> list[Future[Any]]:
        """Start to compare two tensors element by element, piece by piece."""
        first, second = laid(one.words, one.order), laid(other.words, other.order)
        return [
            self.workers.start(first.nbytes, same_elements, first[rows], second[rows])
            for rows in rows_per(first, RANGE)
        ]

    def sum_up(self, member: _Member) -> list[Future[Any]]:
        """Start to sum up a tensor, piece by piece."""
        words, order = member.words, member.order
        return [
            self.workers.start(words.nbytes, self.prints.sums, words, order, rows) for rows in rows_per(words, RANGE)
        ]


def buckets(tensors: Mapping[str, Stored]) -> list[dict[str, Stored]]:
    """Return the tensors by dtype and canonical shape, where two or more have them; nothing is read for it."""
    found: dict[tuple[str, tuple[int, ...]], dict[str, Stored]] = {}
    for name, stored in tensors.items():
        shape = canonical(stored.shape) if BITS.get(stored.dtype) in WIDTHS else stored.shape
        if shape and stored.nbytes and stored.plain:
            found.setdefault((stored.dtype, shape), {})[name] = stored
    return [bucket for bucket in found.values() if len(bucket) > 1]


def _as_it_lies(words: Words) -> tuple[Words, Order]:
    """Return a tensor contiguous, its axes in the order of memory, and where each of them stood."""
    squeezed = words.squeeze()
    turn = sorted(range(squeezed.ndim), key=lambda axis: -squeezed.strides[axis])
    return np.ascontiguousarray(squeezed.transpose(turn)), tuple(turn)


def _turned(axes: Order, turn: Order) -> Order:
    return tuple(axes[axis] for axis in turn)


def _by_order(group: list[_Member]) -> _Sets:
    found: dict[Order, list[_Member]] = {}
    for member in group:
        found.setdefault(member.order, []).append(member)
    return list(found.values())


def _rank(name: str, place: Mapping[str, int]) -> tuple[bool, int]:
    """Rank the name that others are read from first: an embedding before the head that uses it."""
    return bool(READERS.search(name)), place[name]


def _named(group: list[_Member]) -> Copies:
    first = group[0]
    return Copies(tuple(member.name for member in group), tuple(_transform(first, member) for member in group))


def _transform(source: _Member, target: _Member) -> str:
    """Say in the language what `target` is of `source`."""
    turn = [source.axes.index(axis) for axis in target.axes]
    still = turn == sorted(turn)
    if still and source.shape == target.shape:
        return IDENTITY
    if still:
        return _reshape(target.shape)
    before = _reshape(size for size in source.shape if size != 1) if 1 in source.shape else ""
    after = _reshape(target.shape) if 1 in target.shape else ""
    return before + (".T" if turn == [1, 0] else f".permute({', '.join(map(str, turn))})") + after


def _reshape(shape: Iterable[int]) -> str:
    return f".reshape({', '.join(map(str, shape))})"
