"""Groups: which names of a model share memory, and what each of them is of the first.

Owns: the names of a model, `groups`, and the sums over them. Must not change a model, nor read values.
Read next: `folding.py`, which says the same of whole modules; `memory.py` finds the overlaps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from tied.algebra import Expression, Ref, show_address
from tied.checking.memory import overlapping, pieces
from tied.checking.relation import relation
from tied.checking.report import IDENTITY, Group, State
from tied.ledger import entries


class Named(NamedTuple):
    """A tensor at one of its places."""

    name: str
    tensor: Tensor
    is_parameter: bool


@dataclass
class Shelf:
    """Every tensor object of a model once, with all its names, in the order of `named_parameters`.

    Attributes:
        tensors: The objects.
        names: The names of each.
        parameters: Which of them are Parameters.
    """

    tensors: list[Tensor]
    names: list[list[str]]
    parameters: list[bool]

    def parameter_names(self) -> set[str]:
        """Return every name of every Parameter."""
        named = zip(self.names, self.parameters, strict=True)
        return {name for names, is_own in named if is_own for name in names}

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: place for place, names in enumerate(self.names) for name in names}

    def place(self, name: str) -> int | None:
        """Return the position of the tensor with a name."""
        return self._places.get(name)


def named_tensors(model: nn.Module) -> Iterator[Named]:
    """Yield every parameter and buffer under every one of its names, shared modules at each of their places."""
    waiting: list[tuple[str, nn.Module, frozenset[int]]] = [("", model, frozenset())]
    while waiting:
        prefix, module, above = waiting.pop()
        for name, tensor in module._parameters.items():
            if tensor is not None:
                yield Named(prefix + name, tensor, True)
        for name, tensor in module._buffers.items():
            if tensor is not None:
                yield Named(prefix + name, tensor, False)
        children = [(n, m) for n, m in module._modules.items() if m is not None]
        if children:
            above = above | {id(module)}
            waiting += [(f"{prefix}{n}.", m, above) for n, m in reversed(children) if id(m) not in above]


def shelve(named: Iterable[Named]) -> Shelf:
    """Put every tensor object on a shelf once."""
    places: dict[int, int] = {}
    shelf = Shelf([], [], [])
    for name, tensor, is_parameter in named:
        place = places.setdefault(id(tensor), len(shelf.tensors))
        if place == len(shelf.tensors):
            shelf.tensors.append(tensor)
            shelf.names.append([name])
            shelf.parameters.append(is_parameter)
        else:
            shelf.names[place].append(name)
    return shelf


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
    return shared(model, shelve(named_tensors(model)))


def shared(model: nn.Module, shelf: Shelf) -> tuple[Group, ...]:
    """Return what shares memory among the tensors of a shelf, and the ties that `tied` declared on the model."""
    joined = overlapping(shelf.tensors)
    inside = {place for places in joined for place in places}
    joined += [[place] for place, names in enumerate(shelf.names) if len(names) > 1 and place not in inside]
    found = [_memory_group(shelf, places) for places in sorted(joined)]
    return tuple(_with_ledger(model, shelf, found))


def _memory_group(shelf: Shelf, places: list[int]) -> Group:
    first = max(places, key=lambda place: (shelf.tensors[place].numel(), -place)) if len(places) > 1 else places[0]
    base = shelf.tensors[first]
    names, transforms = list[str](), list[str]()
    for place in [first, *(p for p in places if p != first)]:
        what = IDENTITY if place == first else relation(base, shelf.tensors[place])
        names += shelf.names[place]
        transforms += [what] * len(shelf.names[place])
    return group_of("tied" if len(places) == 1 else "half-tied", names, transforms, base)


def group_of(state: State, names: Iterable[str], transforms: Iterable[str], first: Tensor | None) -> Group:
    """Make a group of tensors, described by the first of them."""
    if first is None or is_lazy(first):
        return Group(state, tuple(names), tuple(transforms))
    shape, dtype = tuple(first.shape), str(first.dtype).removeprefix("torch.")
    return Group(state, tuple(names), tuple(transforms), shape, dtype, size_of(first))


def size_of(tensor: Tensor) -> int:
    """Return the bytes of a tensor, as if it were stored densely."""
    return 0 if is_lazy(tensor) else tensor.numel() * tensor.element_size()


# -- ties that `tied` declared ------------------------------------------------------------------------


def _with_ledger(model: nn.Module, shelf: Shelf, found: list[Group]) -> Iterator[Group]:
    """Yield the groups, each with the targets that read one of its tensors; then the ties of several sources."""
    inner = model._modules.get("_orig_mod")
    prefix = "" if inner is None else "_orig_mod."
    known = {name: index for index, group in enumerate(found) for name in group.names}
    more: list[Group] = []
    for tie, module, _ in entries(model if inner is None else inner):
        if tie.target[-1] in module._parameters or tie.target[-1] in module._buffers:
            continue  # it was cut: the target has a tensor of its own
        target, sources = prefix + ".".join(tie.target), [prefix + ".".join(s) for s in tie.source.sources()]
        if len(sources) > 1 or shelf.place(sources[0]) is None:
            more.append(_several(shelf, target, sources, tie.source))
            continue
        source = sources[0]
        if source not in known:
            known[source] = len(found)
            found.append(group_of("tied", [source], [IDENTITY], shelf.tensors[shelf.place(source) or 0]))
        index = known[source]
        found[index] = _joined(found[index], source, target, tie.source)
    yield from [*found, *more]


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
    place = shelf.place(sources[0])
    first = None if place is None else shelf.tensors[place]
    return group_of("tied", [*sources, target], [IDENTITY, *["source"] * (len(sources) - 1), str(expression)], first)


# -- sums ---------------------------------------------------------------------------------------------


def count(tensors: list[Tensor]) -> tuple[int, int]:
    """Return how many numbers and bytes distinct tensors take together, overlaps counted once."""
    joined = overlapping(tensors)
    inside = {place for places in joined for place in places}
    alone = [tensor for place, tensor in enumerate(tensors) if place not in inside and not is_lazy(tensor)]
    numbers, size = sum(t.numel() for t in alone), sum(map(size_of, alone))
    for places in joined:
        covered, itemsize = _union([tensors[place] for place in places])
        numbers, size = numbers + covered // itemsize, size + covered
    return numbers, size


def size_of_targets(model: nn.Module, shelf: Shelf) -> int:
    """Return the bytes that the targets of declared ties would take; those of computed sources are not known."""
    size, inner = 0, model._modules.get("_orig_mod")
    for tie, _, _ in entries(model if inner is None else inner):
        prefix = "" if inner is None else "_orig_mod."
        places = {source: shelf.place(prefix + ".".join(source)) for source in tie.source.sources()}
        if None not in places.values():
            metas = {a: torch.empty_like(shelf.tensors[p], device="meta") for a, p in places.items() if p is not None}
            size += size_of(tie.source.infer(metas))
    return size


def _union(tensors: list[Tensor]) -> tuple[int, int]:
    """Return the bytes that overlapping tensors cover, and those of one element."""
    found = [piece for tensor in tensors for piece in pieces(tensor)]
    itemsize, low = min(piece.itemsize for piece in found), min(piece.start for piece in found)
    largest = max(tensors, key=size_of)
    if all(relation(largest, tensor) != "overlap" for tensor in tensors):
        return size_of(largest), itemsize
    bytes_seen = np.zeros(max(piece.stop for piece in found) - low, dtype=np.bool_)
    for piece in found:
        shape, strides = (*piece.shape, piece.itemsize), (*piece.strides, 1)
        np.lib.stride_tricks.as_strided(bytes_seen[piece.start - low :], shape, strides)[...] = True
    return int(bytes_seen.sum()), itemsize
