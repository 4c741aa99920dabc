"""Groups: which names of a model share memory, and what each of them is of the first.

Owns: `groups`, and the sums over them. Must not change a model, nor read values.
Read next: `folding.py`, which says the same of whole modules; `memory.py` finds the overlaps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from tied.algebra import Expression, Ref, show_address
from tied.checking.memory import pieces
from tied.checking.relation import relation
from tied.checking.report import IDENTITY, OVERLAP, Group, State
from tied.checking.shelf import Shelf, size_of as size_of
from tied.ledger import Tie, entries


def groups(model: nn.Module) -> tuple[Group, ...]:
    """Return what shares memory in a model: one group for each set of names joined by overlaps.

    A group is `tied` if one tensor object stands under all its names, or if `tied` declared it; it is
    `half-tied` if several objects lie over the memory. The first name is that of the largest tensor; the
    transforms say what every other is of it.

    Example:
        >>> model = nn.ModuleDict({"encoder": nn.Linear(3, 5), "decoder": nn.Linear(5, 3)})
        >>> model["decoder"].weight = nn.Parameter(model["encoder"].weight.t())
        >>> (group,) = groups(model)
        >>> group.state, group.names, group.transforms
        ('half-tied', ('encoder.weight', 'decoder.weight'), ('identity', '.T'))
    """
    return shared(Shelf.of(model))


def shared(shelf: Shelf) -> tuple[Group, ...]:
    """Return what shares memory among the tensors of a shelf, and the ties that `tied` declared on the model."""
    inside = {place for places in shelf.joined for place in places}
    joined = shelf.joined + [
        [place] for place, names in enumerate(shelf.names) if len(names) > 1 and place not in inside
    ]
    found = [_memory_group(shelf, places) for places in sorted(joined)]
    return tuple(_with_ledger(shelf, found)) if shelf.has_ties else tuple(found)


def _memory_group(shelf: Shelf, places: list[int]) -> Group:
    if len(places) == 1:
        known = shelf.names[places[0]]
        return group_of("tied", known, (IDENTITY,) * len(known), shelf.tensors[places[0]])
    first = max(places, key=lambda place: (shelf.tensors[place].numel(), -place))
    base = shelf.tensors[first]
    names, transforms = list[str](), list[str]()
    for place in [first, *(p for p in places if p != first)]:
        what = IDENTITY if place == first else relation(base, shelf.tensors[place])
        names += shelf.names[place]
        transforms += [what] * len(shelf.names[place])
    return group_of("half-tied", names, transforms, base)


def group_of(state: State, names: Iterable[str], transforms: Iterable[str], first: Tensor | None) -> Group:
    """Make a group of tensors, described by the first of them."""
    if first is None or is_lazy(first):
        return Group(state, tuple(names), tuple(transforms))
    shape, dtype = tuple(first.shape), str(first.dtype).removeprefix("torch.")
    return Group(state, tuple(names), tuple(transforms), shape, dtype, size_of(first))


# -- ties that `tied` declared ------------------------------------------------------------------------


def _with_ledger(shelf: Shelf, found: list[Group]) -> Iterator[Group]:
    """Yield the groups, each with the targets that read one of its tensors; then the ties of several sources."""
    known = {name: index for index, group in enumerate(found) for name in group.names}
    more: list[Group] = []
    for prefix, tie, module in _ties(shelf):
        if tie.target[-1] in module._parameters or tie.target[-1] in module._buffers:
            continue  # it was cut: the target has a tensor of its own
        target, sources = prefix + ".".join(tie.target), [prefix + ".".join(s) for s in tie.source.sources()]
        first = shelf.tensor(sources[0])
        if len(sources) > 1 or first is None:
            more.append(_several(shelf, target, sources, tie.source))
            continue
        source = sources[0]
        if source not in known:
            known[source] = len(found)
            found.append(group_of("tied", [source], [IDENTITY], first))
        index = known[source]
        found[index] = _joined(found[index], source, target, tie.source)
    yield from [*found, *more]


def _ties(shelf: Shelf) -> Iterator[tuple[str, Tie, nn.Module]]:
    """Yield the declared ties, with what torch.compile puts before their names."""
    inner = shelf.model._modules.get("_orig_mod")
    prefix = "" if inner is None else "_orig_mod."
    for tie, module, _ in entries(shelf.model if inner is None else inner):
        yield prefix, tie, module


def _joined(group: Group, source: str, target: str, expression: Expression) -> Group:
    """Add a declared target to the group of its source."""
    own, step = group.transforms[group.names.index(source)], suffix(expression)
    what = step if own == IDENTITY else own + step if step[:1] in ".[" and own[:1] in ".[" else str(expression)
    what = own if step == IDENTITY else what
    return Group(group.state, (*group.names, target), (*group.transforms, what), group.shape, group.dtype, group.bytes)


def suffix(expression: Expression) -> str:
    """Return what an expression does to its one source, as a suffix; the whole text where it is none."""
    if isinstance(expression, Ref):
        return IDENTITY
    text, source = str(expression), show_address(expression.sources()[0])
    rest = text.removeprefix(source)
    return rest if rest != text and text.count(source) == 1 and " " not in rest.split("(")[0].split("[")[0] else text


def _several(shelf: Shelf, target: str, sources: list[str], expression: Expression) -> Group:
    transforms = [IDENTITY, *["source"] * (len(sources) - 1), str(expression)]
    return group_of("tied", [*sources, target], transforms, shelf.tensor(sources[0]))


# -- sums ---------------------------------------------------------------------------------------------


def count(shelf: Shelf) -> tuple[int, int]:
    """Return how many numbers the Parameters hold, and how many bytes all tensors; overlaps are counted once."""
    numbers = sum(own for (own, _), is_parameter in zip(shelf.sizes, shelf.parameters, strict=True) if is_parameter)
    size = sum(each for _, each in shelf.sizes)
    for places in shelf.joined:
        numbers -= sum(shelf.sizes[place][0] for place in places if shelf.parameters[place])
        size -= sum(shelf.sizes[place][1] for place in places)
        tensors = [shelf.tensors[place] for place in places]
        own = [tensor for tensor, place in zip(tensors, places, strict=True) if shelf.parameters[place]]
        all_of_it = union(tensors)
        covered, itemsize = all_of_it if len(own) == len(tensors) else union(own) if own else (0, 1)
        numbers, size = numbers + covered // itemsize, size + all_of_it[0]
    return numbers, size


def size_without_sharing(shelf: Shelf) -> int:
    """Return the bytes that all names would take if each had its own; targets of computed sources are not known."""
    size = sum(each * len(names) for (_, each), names in zip(shelf.sizes, shelf.names, strict=True))
    for prefix, tie, _ in _ties(shelf) if shelf.has_ties else ():
        sources = {source: shelf.tensor(prefix + ".".join(source)) for source in tie.source.sources()}
        metas = {address: torch.empty_like(t, device="meta") for address, t in sources.items() if t is not None}
        size += size_of(tie.source.infer(metas)) if len(metas) == len(sources) else 0
    return size


def union(tensors: list[Tensor]) -> tuple[int, int]:
    """Return the bytes that overlapping tensors cover, and those of one element."""
    found = [piece for tensor in tensors for piece in pieces(tensor)]
    itemsize, low = min(piece.itemsize for piece in found), min(piece.start for piece in found)
    largest = max(tensors, key=size_of)
    if all(relation(largest, tensor) != OVERLAP for tensor in tensors):
        return size_of(largest), itemsize
    bytes_seen = np.zeros(max(piece.stop for piece in found) - low, dtype=np.bool_)
    for piece in found:
        shape, strides = (*piece.shape, piece.itemsize), (*piece.strides, 1)
        np.lib.stride_tricks.as_strided(bytes_seen[piece.start - low :], shape, strides)[...] = True
    return int(bytes_seen.sum()), itemsize
