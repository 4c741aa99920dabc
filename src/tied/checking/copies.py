"""Copies: equal values in separate memory, as they are, transposed, as rows of a larger tensor, or scaled.

Owns: finding them without comparing every pair, and what is no news: constants and other patterns that
initialization makes again and again. Reads values, and only where two tensors could be copies by their shapes.
Read next: `check.py`.

A few entries on the diagonal of a tensor are those of its transpose too; so tensors that are copies have equal
samples there, or proportional ones. Only what agrees in the samples is compared whole.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from tied.memory import IDENTITY
from tied.memory.overlap import PLAIN

Kind = tuple[torch.dtype, torch.device, torch.Size]

FEWEST = 16  # numbers; less than that may be equal by chance of rounding, and saves nothing
SAMPLES = 8
_STACKED = 1024  # tensors up to this size are sampled together


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
    found: dict[int, Copy] = {}
    kinds = _kinds(tensors)
    turned: dict[Hashable, list[int]] = {}
    for (dtype, device, shape), places in kinds.items():
        turned.setdefault((dtype, device, tuple(sorted(shape))), []).extend(places)
    for places in turned.values():
        if len(places) > 1:
            for copy in _same_size(tensors, sorted(places)):
                found.setdefault(copy.other, copy)
    for copy in _rows(tensors, kinds, found):
        found.setdefault(copy.other, copy)
    return sorted(found.values())


def _kinds(tensors: Sequence[Tensor]) -> dict[Kind, list[int]]:
    """Sort the tensors that can be read by dtype, device and shape."""
    kinds: dict[Kind, list[int]] = {}
    for place, tensor in enumerate(tensors):
        is_plain = type(tensor) in PLAIN and tensor.numel() >= FEWEST and tensor.layout is torch.strided
        if is_plain and not tensor.is_nested:
            kinds.setdefault((tensor.dtype, tensor.device, tensor.shape), []).append(place)
    return {(t, d, s): places for (t, d, s), places in kinds.items() if t.is_floating_point and d.type != "meta"}


# -- of one size --------------------------------------------------------------------------------------


def _same_size(tensors: Sequence[Tensor], places: list[int]) -> Iterator[Copy]:
    """Yield copies among tensors whose shapes have the same sizes, in whichever order."""
    leaders: dict[int, list[int]] = {}
    for index, key in _repeated(_directions(_samples([tensors[place] for place in places]))):
        bucket, place = leaders.setdefault(key, []), places[index]
        copy = next((c for first in bucket if (c := _compare(tensors, first, place)) is not None), None)
        if copy is None:
            bucket.append(place)
        else:
            yield copy


def _samples(tensors: list[Tensor]) -> np.ndarray[Any, Any]:
    """Return a few numbers of each tensor, from places that a transposition leaves where they are."""
    shapes: dict[tuple[int, ...], list[int]] = {}
    for index, tensor in enumerate(tensors):
        shapes.setdefault(tensor.shape, []).append(index)
    rows = np.empty((len(tensors), SAMPLES), np.float64)
    with torch.no_grad():
        for shape, indices in shapes.items():
            same = [tensors[index] for index in indices]
            wanted = _diagonal(shape)
            if same[0].numel() <= _STACKED:
                taken = _wide(torch.stack(same))[(slice(None), *wanted)]
            else:
                taken = torch.stack([_wide(tensor)[wanted] for tensor in same])
            rows[indices] = taken.double().cpu().numpy()
    return rows


def _wide(tensor: Tensor) -> Tensor:
    """Return numbers of eight bits as wider ones, for torch computes little with them."""
    return tensor.float() if tensor.element_size() == 1 else tensor


def _diagonal(shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Return indices of entries along the diagonal of all dimensions that are as long as the shortest two allow."""
    if len(shape) == 1:
        return (torch.linspace(0, shape[0] - 1, SAMPLES).long(),)
    steps = torch.linspace(0, min(sorted(shape)[-2:]) - 1, SAMPLES).long()
    return tuple(steps.clamp(max=size - 1) for size in shape)


def _directions(samples: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return what proportional samples have in common, to one digit each, as one integer; 0 where all are equal."""
    leading = np.take_along_axis(samples, np.abs(samples).argmax(axis=1)[:, None], axis=1)
    with np.errstate(all="ignore"):
        directions = samples / leading  # not a number where the leading one is 0, infinite, or none itself
    constant = np.isnan(directions).any(axis=1) | (directions == 1).all(axis=1)
    digits = np.where(constant[:, None], 0, np.round(10 * directions)).astype(np.int8)
    return np.ascontiguousarray(digits).view(np.int64)[:, 0]


def _repeated(keys: np.ndarray[Any, Any]) -> Iterator[tuple[int, int]]:
    """Yield the index and the value of what stands several times, and is not 0."""
    _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    for index in np.flatnonzero((counts[inverse] > 1) & (keys != 0)).tolist():
        yield index, int(keys[index])


def _compare(tensors: Sequence[Tensor], first: int, other: int) -> Copy | None:
    """Compare two tensors whole: as they are, transposed, and up to a constant factor."""
    one, two = tensors[first].detach(), tensors[other].detach()
    for transform, view in _views(one, two):
        if torch.equal(view, two):
            return None if is_pattern(two) else Copy(first, other, transform)
    for transform, view in _views(one, two):
        factor = _factor(view, two)
        if factor is not None:
            return None if is_pattern(one) or is_pattern(two) else Copy(first, other, transform, factor)
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
    if one.numel() < 4 * FEWEST:
        return None
    source, target = one.double(), two.double()
    square, product = float((source * source).sum()), float((source * target).sum())
    if not (np.isfinite(square) and np.isfinite(product) and square and product):
        return None
    factor, tolerance = product / square, 4 * torch.finfo(one.dtype).eps
    if abs(factor - 1) <= tolerance:
        return None  # nearly equal: two that have drifted
    error = (source * factor - target).abs()
    return factor if bool((error <= tolerance * target.abs() + tolerance * 1e-3 * target.abs().max()).all()) else None


# -- rows of a larger one -----------------------------------------------------------------------------


def _rows(tensors: Sequence[Tensor], kinds: Mapping[Kind, list[int]], known: Collection[int]) -> Iterator[Copy]:
    """Yield tensors that are consecutive rows of a larger one: a part of a fused weight, a cut vocabulary."""
    widths: dict[Hashable, list[list[int]]] = {}
    for (dtype, device, shape), places in kinds.items():
        news = [place for place in places if place not in known] if len(shape) > 1 and shape[1:].numel() >= 4 else []
        if news:
            widths.setdefault((dtype, device, shape[1:]), []).append(news)
    for several in widths.values():
        if len(several) > 1:  # of so many numbers of rows
            same = [place for places in several for place in places]
            yield from _rows_of_one_width(tensors, sorted(same, key=lambda p: (-tensors[p].shape[0], p)))


def _rows_of_one_width(tensors: Sequence[Tensor], places: list[int]) -> Iterator[Copy]:
    """Yield copies among tensors of one width, which are sorted by their number of rows, the largest first."""
    heads = _heads(tensors, places, rows=1)
    fewest = tensors[places[-1]].shape[0]
    larger = [place for place in places if tensors[place].shape[0] > fewest]
    keys = _heads(tensors, larger)
    origins = np.repeat(larger, [tensors[place].shape[0] for place in larger])
    firsts = np.cumsum([0, *(tensors[place].shape[0] for place in larger[:-1])])
    rows = np.arange(len(keys)) - np.repeat(firsts, [tensors[place].shape[0] for place in larger])
    known: dict[bytes, list[tuple[int, int]]] = {}
    for hit in np.flatnonzero(np.isin(keys, heads)):
        known.setdefault(keys[hit].tobytes(), []).append((int(origins[hit]), int(rows[hit])))
    for head, place in zip(heads, places, strict=True):
        for whole, row in known.get(head.tobytes(), ()):
            copy = _as_rows(tensors, whole, row, place)
            if copy is not None:
                yield copy
                break


def _as_rows(tensors: Sequence[Tensor], whole: int, row: int, place: int) -> Copy | None:
    part, larger = tensors[place].detach(), tensors[whole].detach()
    end, count = row + part.shape[0], larger.shape[0]
    if not part.shape[0] < count >= end or not torch.equal(larger[row:end], part) or is_pattern(part):
        return None
    return Copy(whole, place, f"[{row or ''}:{end if end < count else ''}]")


def _heads(tensors: Sequence[Tensor], places: list[int], rows: int | None = None) -> np.ndarray[Any, Any]:
    """Return the first four numbers of the rows of tensors, one after the other, each as one value."""
    shapes: dict[int, list[Tensor]] = {}
    for place in places:
        shapes.setdefault(tensors[place].shape[0], []).append(tensors[place])
    with torch.no_grad():  # `places` are sorted by their number of rows, so that the order stays
        taken = [torch.stack([_corner(t, rows) for t in same]).flatten(0, 1).double().cpu() for same in shapes.values()]
    return np.ascontiguousarray(torch.cat(taken).numpy()).view("V32")[:, 0]


def _corner(tensor: Tensor, rows: int | None) -> Tensor:
    return (tensor if tensor.dim() == 2 else tensor.flatten(1))[:rows, :4]


# -- of two ------------------------------------------------------------------------------------------


def is_readable(tensor: Tensor) -> bool:
    """Tell whether the values of a tensor are here, all of them: there are none on meta, and a shard is not all."""
    return not (is_lazy(tensor) or tensor.is_meta or hasattr(tensor, "fake_mode") or hasattr(tensor, "_local_tensor"))


def equal_values(one: Tensor, other: Tensor) -> bool | None:
    """Tell whether two tensors are equal; None where these cannot be read or compared."""
    if not is_readable(one) or not is_readable(other):
        return None
    try:
        return torch.equal(one.detach().cpu(), other.detach().cpu())
    except (RuntimeError, NotImplementedError, TypeError):  # kinds of tensors that torch does not compare
        return None


# -- no news ------------------------------------------------------------------------------------------


def is_pattern(tensor: Tensor) -> bool:
    """Tell whether a tensor is one that initialization makes again and again, so that equality says nothing.

    Two values at most (constants, identities, masks), one row or one column repeated, a ramp, a table of sines.
    """
    tensor = _wide(tensor.detach())
    first = tensor.flatten()[0]
    others = tensor[tensor != first]
    if not others.numel() or bool((others == others[0]).all()):
        return True
    if tensor.dim() == 1:
        steps = tensor.diff()
        return bool((steps >= 0).all() or (steps <= 0).all())
    same_rows, same_columns = bool((tensor == tensor[:1]).all()), bool((tensor == tensor[..., :1]).all())
    return same_rows or same_columns or _is_sinusoidal(tensor)


def _is_sinusoidal(tensor: Tensor) -> bool:
    """Tell whether every row holds as many sines as cosines of the same angles; rows of padding are zero."""
    if tensor.dim() != 2 or float(tensor.abs().max()) > 1:
        return False
    squares = tensor.double().square().sum(1)
    return bool(((squares - tensor.shape[1] / 2).abs() < 1e-2)[squares > 0].all())
