"""Copies that are consecutive rows of a larger tensor: a part of a fused weight, a cut vocabulary.

Owns: finding them. A tensor is compared with rows whose first four numbers are its own; where there are many such rows,
only with those that have its sum. Read next: `copies.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from tied.checking.fingerprints import Numbers, mixed, row_sums
from tied.checking.patterns import is_pattern

Kind = tuple[torch.dtype, torch.device, torch.Size]
Found = tuple[int, int, str]  # the larger one, the part, and what it is of the larger one

_FEW = 4  # so many places where a part may lie are compared as they are
_BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(_BASE, -1, 2**64)


def rows_of_larger(
    tensors: Sequence[Tensor], kinds: Mapping[Kind, list[int]], known: Collection[int]
) -> Iterator[Found]:
    """Yield the tensors that are consecutive rows of a larger one, but for those in `known`."""
    widths: dict[Hashable, list[list[int]]] = {}
    for (dtype, device, shape), places in kinds.items():
        news = [place for place in places if place not in known] if len(shape) > 1 and shape[1:].numel() >= 4 else []
        if news:
            widths.setdefault((dtype, device, shape[1:]), []).append(news)
    for several in widths.values():
        if len(several) > 1:  # of so many numbers of rows
            same = [place for places in several for place in places]
            yield from _OneWidth(tensors, sorted(same, key=lambda p: (-tensors[p].shape[0], p))).found()


class _OneWidth:
    """Tensors of one width, sorted by their number of rows, the largest first."""

    def __init__(self, tensors: Sequence[Tensor], places: list[int]) -> None:
        self._tensors, self._places = tensors, places
        self._counts = [tensors[place].shape[0] for place in places]
        larger = [place for place, count in zip(places, self._counts, strict=True) if count > self._counts[-1]]
        self._heads, keys = _heads(tensors, places, rows=1), _heads(tensors, larger)
        sizes = np.array(self._counts[: len(larger)])
        hits = np.flatnonzero(np.isin(keys, self._heads))
        firsts = np.cumsum(sizes) - sizes
        self._wholes = np.repeat(np.arange(len(larger)), sizes)[hits]
        self._rows = hits - firsts[self._wholes]
        self._keys = keys[hits]
        self._prefixes: dict[int, Numbers] = {}

    def found(self) -> Iterator[Found]:
        order = np.argsort(self._keys, kind="stable")
        ordered = self._keys[order]
        parts: dict[tuple[int, int], list[int]] = {}
        begins, ends = (np.searchsorted(ordered, self._heads, side).tolist() for side in ("left", "right"))
        for index, count in enumerate(self._counts):
            if ends[index] > begins[index]:
                parts.setdefault((begins[index], count), []).append(index)
        for (begin, count), indices in parts.items():
            hits = order[begin : ends[indices[0]]]
            wholes, rows = self._wholes[hits], self._rows[hits]
            heights = np.array(self._counts)[wholes]
            fits = (heights > count) & (rows + count <= heights)
            if fits.any():
                yield from self._among(indices, wholes[fits], rows[fits])

    def _among(self, indices: list[int], wholes: Numbers, rows: Numbers) -> Iterator[Found]:
        """Yield which of the parts, which have one first row and one size, lie at which of the places."""
        places = list(zip(wholes.tolist(), rows.tolist(), strict=True))
        if len(places) <= _FEW:
            yield from (found for index in indices if (found := self._first(index, places)))
            return
        count = self._counts[indices[0]]
        keys: dict[int, tuple[int, int]] = {}
        for whole, row in places:
            keys.setdefault(self._window(whole, row, count), (whole, row))
        for index in indices:
            place = keys.get(self._window(index, 0, count))
            if place and (found := self._first(index, [place])):
                yield found

    def _first(self, index: int, places: list[tuple[int, int]]) -> Found | None:
        part = self._tensors[self._places[index]].detach()
        for whole, row in places:
            larger, end = self._tensors[self._places[whole]].detach(), row + part.shape[0]
            if torch.equal(larger[row:end], part):
                what = f"[{row or ''}:{end if end < larger.shape[0] else ''}]"
                return None if is_pattern(part) else (self._places[whole], self._places[index], what)
        return None

    def _window(self, index: int, row: int, count: int) -> int:
        """Return the sum of consecutive rows of a tensor, whatever lies before them."""
        if index not in self._prefixes:
            sums = row_sums(self._tensors[self._places[index]]).view(np.uint64)
            powers = np.cumprod(np.full(len(sums), _BASE, np.uint64))
            self._prefixes[index] = np.append(np.uint64(0), np.cumsum(sums * powers))
        prefix = self._prefixes[index]
        return (int(prefix[row + count]) - int(prefix[row])) * pow(_INVERSE, row, 2**64) % 2**64


def _heads(tensors: Sequence[Tensor], places: list[int], rows: int | None = None) -> Numbers:
    """Return the first four numbers of the rows of tensors, one after the other, each as one integer."""
    shapes: dict[int, list[Tensor]] = {}
    for place in places:
        shapes.setdefault(tensors[place].shape[0], []).append(tensors[place].detach())
    # `places` are sorted by their number of rows, so that the order stays
    taken = [torch.stack([_corner(t, rows) for t in same]).flatten(0, 1).double().cpu() for same in shapes.values()]
    return mixed(torch.cat(taken).numpy())


def _corner(tensor: Tensor, rows: int | None) -> Tensor:
    return (tensor if tensor.dim() == 2 else tensor.flatten(1))[:rows, :4]
