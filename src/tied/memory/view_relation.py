"""Relations: which transform of one tensor is the memory of another.

Owns: writing a strided view as a transform of the language. Must not read values. Read next: `checking/groups.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations

import torch
from torch import Tensor

from tied.memory import IDENTITY, OVERLAP
from tied.memory.overlap import Piece, pieces

_MOST_DIMS = 4  # a relation of more dimensions is sought in their own order only


def relation(base: Tensor, view: Tensor) -> str:
    """Return what `view` is of `base`, as a suffix of an expression; "overlap" where no transform says it.

    Law: where the answer is no "overlap", the transform of `base` is a view of the very elements of `view`.

    Example:
        >>> weight = torch.zeros(6, 4)
        >>> relation(weight, weight.t()), relation(weight, weight[2:5]), relation(weight, weight[:, 1].unsqueeze(0))
        ('.T', '[2:5]', '[:, 1:2].T')
    """
    whole, part = pieces(base), pieces(view)
    kinds = {(t.dtype, t.layout, t.is_nested, t.is_conj(), t.is_neg()) for t in (base, view)}
    is_strided = base.layout is torch.strided and not base.is_nested
    if len(whole) != 1 or len(part) != 1 or len(kinds) > 1 or not is_strided:
        return OVERLAP
    return _of(whole[0], part[0])


def _of(base: Piece, view: Piece) -> str:
    if (base.start, base.shape, base.strides) == (view.start, view.shape, view.strides):
        return IDENTITY
    text = next((found for dims in _orders(base, view) if (found := _sliced(base, view, dims)) is not None), None)
    return text or _spread(base, view) or _reshaped(base, view) or OVERLAP


def _orders(base: Piece, view: Piece) -> Iterator[tuple[int, ...]]:
    """Yield, for each dimension of the view, which dimension of the base it may run along."""
    count, wanted = len(base.shape), len(view.shape)
    if wanted <= count and 0 not in base.strides:
        yield from permutations(range(count), wanted) if count <= _MOST_DIMS else [tuple(range(wanted))]


def _sliced(base: Piece, view: Piece, dims: tuple[int, ...]) -> str | None:
    """Return slices, integers and a permutation that make the view, if it runs along these dimensions."""
    steps: dict[int, tuple[int, int]] = {}  # dimension of the base -> step and size in the view
    for dim, size, stride in zip(dims, view.shape, view.strides, strict=True):
        step, rest = divmod(stride, base.strides[dim]) if size > 1 else (1, 0)
        if rest or not step:
            return None
        steps[dim] = step, size
    begins, rest = _begins(base, view.start - base.start)
    if rest or any(begins[dim] + (size - 1) * step >= base.shape[dim] for dim, (step, size) in steps.items()):
        return None
    selected = [_select(begins[dim], steps.get(dim), base.shape[dim]) for dim in range(len(base.shape))]
    return _brackets(selected) + _permuted(dims)


def _begins(base: Piece, offset: int) -> tuple[list[int], int]:
    """Write an offset in bytes as an index of the base; return what remains."""
    begins = [0] * len(base.shape)
    for dim in sorted(range(len(base.shape)), key=lambda d: (-base.strides[d], -base.shape[d])):
        begins[dim] = min(offset // base.strides[dim], base.shape[dim] - 1)
        offset -= begins[dim] * base.strides[dim]
    return begins, offset


def _select(begin: int, step_and_size: tuple[int, int] | None, whole: int) -> str:
    if step_and_size is None:
        return str(begin)
    step, size = step_and_size
    end = begin + (size - 1) * step + 1
    text = f"{begin or ''}:{end if end < whole else ''}"
    return text if step == 1 else f"{text}:{step}"


def _brackets(selected: list[str]) -> str:
    while selected and selected[-1] == ":":
        selected = selected[:-1]
    return f"[{', '.join(selected)}]" if selected else ""


def _permuted(dims: tuple[int, ...]) -> str:
    order = sorted(dims)
    places = tuple(order.index(dim) for dim in dims)
    if places == tuple(range(len(places))):
        return ""
    return ".T" if places == (1, 0) else f".permute({', '.join(map(str, places))})"


def _spread(base: Piece, view: Piece) -> str | None:
    """Return the view as an expansion: dimensions of size 1, or of stride 0."""
    dims = range(len(view.shape))
    added = [d for d in dims if view.strides[d] == 0 or view.shape[d] == 1]
    if not added:
        return None
    kept = [d for d in dims if d not in added]
    narrow = view._replace(shape=tuple(view.shape[d] for d in kept), strides=tuple(view.strides[d] for d in kept))
    inner = _of(base, narrow)
    if inner == OVERLAP:
        return None
    text = "" if inner == IDENTITY else inner
    text += "".join(f".unsqueeze({d})" for d in added)
    grown = any(view.shape[d] > 1 for d in added)
    return text + (f".expand({', '.join(map(str, view.shape))})" if grown else "")


def _reshaped(base: Piece, view: Piece) -> str | None:
    """Return a contiguous stretch of a contiguous base."""
    if not (_is_contiguous(base) and _is_contiguous(view)):
        return None
    begin, rest = divmod(view.start - base.start, base.itemsize)
    end, count = (view.stop - base.start) // base.itemsize, (base.stop - base.start) // base.itemsize
    if rest or begin < 0 or end > count:
        return None
    part = "" if (begin, end) == (0, count) else f"{'' if len(base.shape) == 1 else '.flatten()'}[{begin or ''}:{end}]"
    if len(view.shape) == 1:
        return part or ".flatten()"
    return f"{part}.reshape({', '.join(map(str, view.shape))})"


def _is_contiguous(piece: Piece) -> bool:
    reach = piece.itemsize
    for size, stride in zip(reversed(piece.shape), reversed(piece.strides), strict=True):
        if size > 1 and stride != reach:
            return False
        reach *= size
    return True
