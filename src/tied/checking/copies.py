"""Copies: equal values in separate memory, as they are, transposed, as rows of a larger tensor, or scaled.

Owns: finding them without comparing every pair. Reads values, and only where two tensors could be copies by their
shapes. Read next: `fingerprints.py`, then `row_copies.py` and `patterns.py`.

Law: every copy is compared whole, and so is next to nothing else. Tensors that agree in their samples are compared with
the first of them; what differs from it is read once more, for its sum, and compared with what has the same sum. So a
tensor is read a few times, whatever the others hold.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tied.checking.fingerprints import Numbers, alike, constants, mixed, near, projections, samples, sums
from tied.checking.patterns import is_pattern
from tied.checking.row_copies import Kind, rows_of_larger
from tied.memory import IDENTITY
from tied.memory.overlap import PLAIN

FEWEST = 16  # numbers; less than that may be equal by chance of rounding, and saves nothing
_MOST = 4  # so many are compared with each other, up to a factor, if nothing tells them apart


class Copy(NamedTuple):
    """`other` is `factor` times the transform of `first`; both are positions."""

    first: int
    other: int
    transform: str
    factor: float = 1.0


def copies(tensors: Sequence[Tensor]) -> list[Copy]:
    """Return which tensors are copies of an earlier one, each at most once.

    Example:
        >>> w = torch.randn(8, 4)
        >>> copies([w, w.t().clone(), torch.ones(8, 4), torch.ones(8, 4), w[2:6].clone()])
        [Copy(first=0, other=1, transform='.T', factor=1.0), Copy(first=0, other=4, transform='[2:6]', factor=1.0)]
    """
    kinds = _kinds(tensors)
    turned: dict[Hashable, list[int]] = {}
    for (dtype, device, shape), places in kinds.items():
        turned.setdefault((dtype, device, tuple(sorted(shape[:2])), shape[2:]), []).extend(places)
    found: dict[int, Copy] = {}
    for places in turned.values():
        if len(places) > 1:
            found |= {copy.other: copy for copy in _OneSize(tensors, sorted(places)).copies()}
    found |= {part: Copy(whole, part, what) for whole, part, what in rows_of_larger(tensors, kinds, found)}
    return sorted(found.values())


def _kinds(tensors: Sequence[Tensor]) -> dict[Kind, list[int]]:
    """Sort the tensors that can be read by dtype, device and shape."""
    kinds: dict[Kind, list[int]] = {}
    for place, tensor in enumerate(tensors):
        is_plain = type(tensor) in PLAIN and tensor.layout is torch.strided and not tensor.is_nested
        if is_plain and tensor.numel() >= FEWEST:
            kinds.setdefault((tensor.dtype, tensor.device, tensor.shape), []).append(place)
    return {(t, d, s): places for (t, d, s), places in kinds.items() if t.is_floating_point and d.type != "meta"}


class _OneSize:
    """Tensors of one dtype on one device, of one shape up to the order of the first two dimensions."""

    def __init__(self, tensors: Sequence[Tensor], places: list[int]) -> None:
        self._tensors, self._places = [tensors[place] for place in places], places
        self._samples = samples(self._tensors)
        self._settled, self._patterns = set[int](), dict[int, bool]()

    def copies(self) -> Iterator[Copy]:
        """Yield what is a copy of an earlier one: exactly, then up to a factor."""
        for indices in alike(mixed(self._samples)):
            yield from self._told(self._exact(indices))
        if self._tensors[0].numel() >= 4 * FEWEST:
            left = [index for index in range(len(self._tensors)) if index not in self._settled]
            yield from self._told(self._scaled(np.array(left, np.int64)))

    def _told(self, found: Iterable[Copy]) -> Iterator[Copy]:
        """Yield copies with the positions of the caller, but for patterns."""
        for copy in found:
            self._settled.add(copy.other)
            ends = {copy.first} if copy.transform == IDENTITY and copy.factor == 1 else {copy.first, copy.other}
            if not any(map(self._is_pattern, ends)):
                yield copy._replace(first=self._places[copy.first], other=self._places[copy.other])

    def _is_pattern(self, index: int) -> bool:
        if index not in self._patterns:
            self._patterns[index] = is_pattern(self._tensors[index])
        return self._patterns[index]

    # -- exactly

    def _exact(self, indices: list[int]) -> Iterator[Copy]:
        """Yield the copies among tensors whose samples are equal."""
        if (self._samples[indices[0]] == self._samples[indices[0], 0]).all():
            constant = constants([self._tensors[index] for index in indices]).tolist()
            self._settled.update(index for index, is_one in zip(indices, constant, strict=True) if is_one)
            indices = [index for index in indices if index not in self._settled]
        left = (yield from self._of_first(indices)) if indices else []
        for places in alike(sums([self._tensors[index] for index in left])) if len(left) > 1 else ():
            yield from self._of_first([left[place] for place in places])

    def _of_first(self, indices: list[int]) -> Iterator[Copy]:
        """Yield what is a copy of the first; return the rest."""
        first, *others = indices
        left: list[int] = []
        for other in others:
            one, two = self._tensors[first].detach(), self._tensors[other].detach()
            transform = next((what for what, view in _views(one, two) if torch.equal(view, two)), None)
            if transform is None:
                left.append(other)
            else:
                yield Copy(first, other, transform)
        return left

    # -- up to a factor

    def _scaled(self, left: Numbers) -> Iterator[Copy]:
        """Yield the copies among tensors that are not equal, as far as rounding lets them be told apart."""
        some = self._samples[left]
        with np.errstate(all="ignore"):
            norms = np.sqrt((some * some).sum(1, keepdims=True))
            directions = np.abs(some) / np.where(norms == 0, 1, norms)
        finite = np.isfinite(directions).all(1)
        left, directions = left[finite], directions[finite]
        eps = torch.finfo(self._tensors[0].dtype).eps
        for run in near(directions, 4 * eps):
            for some in [run] if len(run) <= _MOST else self._narrowed(left, directions, run, eps):
                yield from self._factors([index for index in left[some].tolist() if index not in self._settled])

    def _narrowed(self, left: Numbers, directions: Numbers, run: list[int], eps: float) -> Iterator[list[int]]:
        """Cut a run of many into cells, once between the lines of the other time; then by what takes a reading."""
        chosen, seen = np.array(run), set[tuple[int, ...]]()
        for shift in (0, 0.5):
            for cell in alike(mixed(np.floor(directions[chosen] / (8 * eps) + shift))):
                indices = chosen[cell]
                if len(indices) <= _MOST:
                    yield indices.tolist()
                elif tuple(cell) not in seen:
                    seen.add(tuple(cell))
                    found = projections([self._tensors[index] for index in left[indices].tolist()])
                    finite = np.isfinite(found).all(1)
                    yield from (indices[finite][part].tolist() for part in near(found[finite], 16 * eps))

    def _factors(self, indices: list[int]) -> Iterator[Copy]:
        """Yield what is a multiple of one of the first few that are no multiples themselves."""
        leaders: list[int] = []
        for other in indices:
            copy = next((found for first in leaders if (found := self._multiple(first, other))), None)
            if copy is not None:
                yield copy
            elif len(leaders) < _MOST:
                leaders.append(other)

    def _multiple(self, first: int, other: int) -> Copy | None:
        one, two = self._tensors[first].detach(), self._tensors[other].detach()
        for transform, view in _views(one, two):
            factor = _factor(view, two)
            if factor is not None:
                return Copy(first, other, transform, factor)
        return None


def _views(one: Tensor, two: Tensor) -> Iterator[tuple[str, Tensor]]:
    if one.shape == two.shape:
        yield IDENTITY, one
    if one.dim() == 2 and one.mT.shape == two.shape:
        yield ".T", one.mT
    if one.dim() > 2 and one.transpose(0, 1).shape == two.shape:
        yield ".transpose(0, 1)", one.transpose(0, 1)


def _factor(one: Tensor, two: Tensor) -> float | None:
    """Return the constant `c` of `two == c * one`, up to the rounding of the dtype; None where there is none."""
    source, target = one.double(), two.double()
    square, product = float((source * source).sum()), float((source * target).sum())
    if not (np.isfinite(square) and np.isfinite(product) and square and product):
        return None
    factor, tolerance = product / square, 4 * torch.finfo(one.dtype).eps
    if abs(factor - 1) <= tolerance:
        return None  # nearly equal: two that have drifted
    error = (source * factor - target).abs()
    return factor if bool((error <= tolerance * target.abs() + tolerance * 1e-3 * target.abs().max()).all()) else None
