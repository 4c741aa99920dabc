"""Fingerprints: a few numbers of a tensor that copies of it have too, so that few tensors are compared whole.

Owns: samples (eight numbers), sums (of all bits) and projections (of all values, up to a factor); and sorting by them.
Must not decide that two tensors are equal: a fingerprint says where to look. Read next: `copies.py`.

All of them are those of the transpose too. A transposition leaves the entries on the diagonal where they are; and the
sum of `r[i] * c[j] * bits[i, j]` over a matrix is that of its transpose with `r` and `c` exchanged, modulo 2**64 and
hence in any order of adding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Numbers = np.ndarray[Any, Any]

SAMPLES = 8
_STACKED = 1024  # tensors up to this size are read together
_BLOCK = 1 << 20  # how many numbers of a larger one are read at a time
_SEED = 5_114_213
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def wide(tensor: Tensor) -> Tensor:
    """Return numbers of eight bits as wider ones, for torch computes little with them."""
    return tensor.float() if tensor.element_size() == 1 else tensor


# -- samples ------------------------------------------------------------------------------------------


def samples(tensors: Sequence[Tensor]) -> Numbers:
    """Return eight numbers of each tensor, from places that a transposition leaves where they are."""
    rows = np.empty((len(tensors), SAMPLES), np.float64)
    for indices, several in _by_shape(tensors):
        wanted = _diagonal(several[0].shape)
        if several[0].numel() <= _STACKED:
            taken = wide(torch.stack(several))[(slice(None), *wanted)]
        else:
            taken = torch.stack([wide(tensor)[wanted] for tensor in several])
        rows[indices] = taken.double().cpu().numpy()
    return rows


def _by_shape(tensors: Sequence[Tensor]) -> Iterator[tuple[list[int], list[Tensor]]]:
    shapes: dict[torch.Size, list[int]] = {}
    for index, tensor in enumerate(tensors):
        shapes.setdefault(tensor.shape, []).append(index)
    yield from ((indices, [tensors[index].detach() for index in indices]) for indices in shapes.values())


def _diagonal(shape: torch.Size) -> tuple[Tensor, ...]:
    """Return indices of entries along the diagonal of all dimensions that are as long as the shortest two allow."""
    if len(shape) == 1:
        return (torch.linspace(0, shape[0] - 1, SAMPLES).long(),)
    steps = torch.linspace(0, min(sorted(shape)[-2:]) - 1, SAMPLES).long()
    return tuple(steps.clamp(max=size - 1) for size in shape)


# -- sums ---------------------------------------------------------------------------------------------


def sums(tensors: Sequence[Tensor]) -> Numbers:
    """Return one integer for each tensor: the weighted sum of the bits of all its numbers."""
    found = np.empty(len(tensors), np.int64)
    for indices, several in _stacks(tensors):
        one, other = (total.cpu().numpy() for total in _forms(several, bits, _odd))
        low, high = np.minimum(one, other), np.maximum(one, other)
        found[indices] = low * 3 + high
    return found


def constants(tensors: Sequence[Tensor]) -> Numbers:
    """Return for each tensor whether all its numbers are one."""
    found = np.empty(len(tensors), np.bool_)
    for indices, several in _stacks(tensors):
        numbers = wide(several).flatten(1)
        found[indices] = (numbers == numbers[:, :1]).all(1).cpu().numpy()
    return found


def projections(tensors: Sequence[Tensor]) -> Numbers:
    """Return two numbers for each tensor, its projections on random directions by its norm, without their sign."""
    found = np.empty((len(tensors), 2), np.float64)
    for indices, several in _stacks(tensors):
        forms = torch.stack(_forms(several, Tensor.double, _normal)).abs().sort(0).values
        norm = torch.linalg.vector_norm(several.flatten(1), dim=1, dtype=torch.float64)
        found[indices] = (forms / norm).T.cpu().numpy()
    return found


def bits(tensor: Tensor) -> Tensor:
    """Return the bits of numbers as integers; those of -0.0 are those of 0.0, which it is equal to."""
    numbers = wide(tensor) + 0.0
    whole = numbers.view(_BITS[numbers.element_size()]).long()
    return whole ^ (whole >> 32) if numbers.element_size() == 8 else whole


def row_sums(tensor: Tensor) -> Numbers:
    """Return one integer for each row of a tensor."""
    rows = tensor.detach().flatten(1)
    weights = _odd(0, rows.shape[1], rows.device)
    step = max(1, _BLOCK // rows.shape[1])
    return torch.cat([(bits(some) * weights).sum(1) for some in rows.split(step)]).cpu().numpy()


def _stacks(tensors: Sequence[Tensor]) -> Iterator[tuple[list[int], Tensor]]:
    """Yield the tensors of each shape as one, of three dimensions more, the longer of the first two first."""
    for indices, several in _by_shape(tensors):
        size = several[0].numel()
        step = max(1, _BLOCK // size) if size <= _STACKED else 1
        for begin in range(0, len(indices), step):
            yield indices[begin : begin + step], _solid(torch.stack(several[begin : begin + step]))


def _solid(several: Tensor) -> Tensor:
    while several.dim() < 4:
        several = several.unsqueeze(-1)
    solid = several.flatten(3)
    return solid if solid.shape[1] >= solid.shape[2] else solid.transpose(1, 2)


def _forms(
    several: Tensor, read: Callable[[Tensor], Tensor], weights: Callable[[int, int, torch.device], Tensor]
) -> list[Tensor]:
    """Return `sum(r[i] * c[j] * d[k] * x[i, j, k])` of each of several, and the same with `r` and `c` exchanged.

    Where the two dimensions differ in length, `r` belongs to the longer one, and both are the same.
    """
    _, height, width, depth = several.shape
    tall, flat, deep = (weights(number, size, several.device) for number, size in enumerate((height, height, depth)))
    step = max(1, _BLOCK // max(1, several[:, :1].numel()))
    orders = [(tall, flat), (flat, tall)] if height == width else [(tall, flat)]
    totals: list[Any] = [0] * len(orders)
    for begin in range(0, height, step):
        block = (read(several[:, begin : begin + step]) * deep).sum(-1)
        for number, (rows, columns) in enumerate(orders):
            totals[number] += ((block * columns[:width]).sum(-1) * rows[begin : begin + step]).sum(-1)
    return totals * (3 - len(orders))


def _odd(number: int, size: int, device: torch.device) -> Tensor:
    drawn = np.random.default_rng(_SEED + number).integers(-(2**63), 2**63 - 1, size) | 1
    return torch.from_numpy(drawn).to(device)


def _normal(number: int, size: int, device: torch.device) -> Tensor:
    return torch.from_numpy(np.random.default_rng(_SEED + number).standard_normal(size)).to(device)


# -- sorting ------------------------------------------------------------------------------------------


def mixed(rows: Numbers) -> Numbers:
    """Return one integer for each row of numbers; rows that are equal have one in common."""
    whole = np.ascontiguousarray(rows + 0.0, dtype=np.float64).view(np.int64)
    return ((whole ^ (whole >> 32)) * _odd(0, rows.shape[1], torch.device("cpu")).numpy()).sum(1)


def alike(keys: Numbers) -> Iterator[list[int]]:
    """Yield the positions of each key that stands several times, in order.

    Example:
        >>> list(alike(np.array([5, 3, 5, 7, 3])))
        [[1, 4], [0, 2]]
    """
    order = np.argsort(keys, kind="stable")
    yield from _cut(order, np.diff(keys[order]) != 0)


def near(rows: Numbers, tolerance: float) -> Iterator[list[int]]:
    """Yield the positions of rows of numbers that may be near each other; what is left out is far from all others.

    Column by column, numbers are sorted and cut where the gap is wider than the tolerance.

    Example:
        >>> list(near(np.array([[0.1, 0.5], [0.9, 0.5], [0.1, 0.7], [0.1, 0.5]]), 0.01))
        [[0, 3]]
    """
    left, runs = np.arange(len(rows)), np.zeros(len(rows), np.int64)
    for column in rows.T:
        order = np.lexsort((column[left], runs))
        left, runs = left[order], runs[order]
        cuts = (np.diff(runs) != 0) | (np.diff(column[left]) > tolerance)
        runs = np.append(0, np.cumsum(cuts)) if len(left) else runs
        several = np.bincount(runs, minlength=1)[runs] > 1
        left, runs = left[several], runs[several]
    order = np.lexsort((left, runs))
    yield from _cut(left[order], np.diff(runs[order]) != 0)


def _cut(order: Numbers, cuts: Numbers) -> Iterator[list[int]]:
    """Yield the runs of two and more between cuts."""
    if not len(order):
        return
    ends = np.append(np.flatnonzero(cuts) + 1, len(order))
    begins = np.append(0, ends[:-1])
    several, listed = ends - begins > 1, order.tolist()
    for begin, end in zip(begins[several].tolist(), ends[several].tolist(), strict=True):
        yield listed[begin:end]
