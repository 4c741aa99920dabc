"""Groups: which names of a model share memory, and what each of them is of the first.

Owns: `groups`, and the sums over them. Must not change a model, nor read values.
Read next: `reporting/fold.py`, which says the same of whole modules; `memory/overlap.py` finds the overlaps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from tied.algebra import Expression, Ref, show_address
from tied.checking.inventory import Inventory
from tied.ledger import Tie, entries, is_live
from tied.memory import IDENTITY, OVERLAP
from tied.memory.overlap import PLAIN, Piece, numel, pieces, shape_of, size_of
from tied.memory.view_relation import relation
from tied.reporting.facts import Group, State


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
    return shared(Inventory.of(model))


def shared(inventory: Inventory) -> tuple[Group, ...]:
    """Return what shares memory among the tensors of an inventory, and the ties that `tied` declared on the model."""
    found = {places[0]: _one(inventory, places) for places in inventory.sharing.same}
    found |= {places[0]: _several_over_one(inventory, places) for places in inventory.sharing.overlapping}
    ordered = [found[place] for place in sorted(found)]
    return tuple(_with_ledger(inventory, ordered)) if inventory.has_ties else tuple(ordered)


def _one(inventory: Inventory, places: list[int]) -> Group:
    names, first = tuple([inventory.names[place] for place in places]), inventory.tensors[places[0]]
    what = (IDENTITY,) * len(names)
    if type(first) in PLAIN and not first.is_nested:  # nearly all, so a short way
        size = inventory.bytes[places[0]]
        return Group("tied", names, what, tuple(first.shape), name_of(first.dtype), size)
    return group_of("tied", names, what, first)


def _several_over_one(inventory: Inventory, places: list[int]) -> Group:
    """Describe overlapping tensors: the largest first, and every name of each object beside its others."""
    first = max(places, key=lambda place: (inventory.tensors[place].numel(), -place))
    base = inventory.tensors[first]
    members: dict[int, list[str]] = {id(base): []}
    for place in places:
        members.setdefault(id(inventory.tensors[place]), []).append(inventory.names[place])
    what = {id(inventory.tensors[place]): relation(base, inventory.tensors[place]) for place in places} | {
        id(base): IDENTITY
    }
    transforms = [what[key] for key, names in members.items() for _ in names]
    return group_of("half-tied", [name for names in members.values() for name in names], transforms, base)


def group_of(state: State, names: Iterable[str], transforms: Iterable[str], first: Tensor | None) -> Group:
    """Make a group of tensors, described by the first of them."""
    if first is None or is_lazy(first):
        return Group(state, tuple(names), tuple(transforms))
    return Group(state, tuple(names), tuple(transforms), shape_of(first), name_of(first.dtype), size_of(first))


@cache
def name_of(dtype: torch.dtype) -> str:
    """Return the name of a dtype, as "float32"."""
    return str(dtype).removeprefix("torch.")


# -- ties that `tied` declared ------------------------------------------------------------------------


def _with_ledger(inventory: Inventory, found: list[Group]) -> Iterator[Group]:
    """Yield the groups, each with the targets that read one of its tensors; then the ties of several sources."""
    known = {name: index for index, group in enumerate(found) for name in group.names}
    more: list[Group] = []
    for prefix, tie, module in _ties(inventory):
        if tie.address[-1] in module._parameters or tie.address[-1] in module._buffers:
            continue  # it holds its source's tensor, as every group of one tensor does; or it was cut
        target, sources = prefix + tie.target, [prefix + ".".join(s) for s in tie.source.sources()]
        first = inventory.tensor(sources[0])
        if len(sources) > 1:
            more.append(_several(inventory, target, sources, tie.source))
            continue
        source = sources[0]
        if source not in known:
            known[source] = len(found)
            found.append(group_of("tied", [source], [IDENTITY], first))
        index = known[source]
        found[index] = _joined(found[index], source, target, tie.source)
    yield from [*found, *more]


def _ties(inventory: Inventory) -> Iterator[tuple[str, Tie, nn.Module]]:
    """Yield the declared ties, with what torch.compile puts before their names."""
    inner = inventory.model._modules.get("_orig_mod")
    prefix = "" if inner is None else "_orig_mod."
    for tie, module, _ in entries(inventory.model if inner is None else inner):
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


def _several(inventory: Inventory, target: str, sources: list[str], expression: Expression) -> Group:
    transforms = [IDENTITY, *["source"] * (len(sources) - 1), str(expression)]
    return group_of("tied", [*sources, target], transforms, inventory.tensor(sources[0]))


# -- sums ---------------------------------------------------------------------------------------------


def count(inventory: Inventory) -> tuple[int, int]:
    """Return how many numbers the Parameters hold, and how many bytes all tensors; overlaps are counted once."""
    again = {place for places in inventory.sharing.same for place in places[1:]}
    numbers = sum([numel(t) for place, t in enumerate(inventory.tensors[: inventory.parameters]) if place not in again])
    size = sum(inventory.bytes) - sum([inventory.bytes[place] for place in again])
    for places in inventory.sharing.overlapping:
        own = [place for place in places if place < inventory.parameters]
        numbers -= sum(numel(inventory.tensors[place]) for place in own)
        size -= sum(inventory.bytes[place] for place in places)
        of_all = union([inventory.tensors[place] for place in places])
        of_own = of_all if len(own) == len(places) else union([inventory.tensors[place] for place in own])
        numbers, size = numbers + of_own[0], size + of_all[1]
    return numbers, size


def size_without_sharing(inventory: Inventory) -> int:
    """Return the bytes that all names would take if each had its own; targets of computed sources are not known."""
    size = sum(inventory.bytes)
    for prefix, tie, module in _ties(inventory) if inventory.has_ties else ():
        if is_live(module, tie.address[-1]):
            continue  # its name has been counted
        sources = {source: inventory.tensor(prefix + ".".join(source)) for source in tie.source.sources()}
        metas = {address: torch.empty_like(t, device="meta") for address, t in sources.items() if t is not None}
        size += size_of(tie.source.infer(metas)) if len(metas) == len(sources) else 0
    return size


def union(tensors: list[Tensor]) -> tuple[int, int]:
    """Return how many numbers, and how many bytes, overlapping tensors hold together."""
    if not tensors:
        return 0, 0
    found = [pieces(tensor) for tensor in tensors]
    largest = max(tensors, key=Tensor.numel)
    if len(set(found)) == 1 or all(relation(largest, tensor) != OVERLAP for tensor in tensors):
        return largest.numel(), size_of(largest)
    return _painted([piece for each in found for piece in each])


def _painted(found: list[Piece]) -> tuple[int, int]:
    """Count what lies under some pieces, byte by byte; in numbers, of the smallest kind."""
    low, high = min(piece.start for piece in found), max(piece.stop for piece in found)
    bytes_seen = np.zeros(high - low, dtype=np.bool_)
    for piece in found:
        shape, strides = (*piece.shape, piece.itemsize), (*piece.strides, 1)
        np.lib.stride_tricks.as_strided(bytes_seen[piece.start - low :], shape, strides)[...] = True
    size = int(bytes_seen.sum())
    return size // min(piece.itemsize for piece in found), size
