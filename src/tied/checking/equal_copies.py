"""Equal copies as groups: which Parameters of a model hold equal values in separate memory, and which are news.

Owns: what is left out: what is declared (and judged there), tables that nobody trains, and modules that were cloned
and never trained. Must not compare tensors itself: `copies.py` does. Read next: `reporting/fold.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import cached_property

from torch import Tensor

from tied.checking.copies import Copy, copies
from tied.checking.declarations import Seen
from tied.checking.groups import group_of
from tied.checking.patterns import equal_values, is_readable
from tied.memory import IDENTITY
from tied.reporting.facts import Group, spelled
from tied.reporting.fold import above, paths, whole


def equal_groups(seen: Seen, judged: Collection[str]) -> Iterator[Group]:
    """Yield the groups of equal copies that are worth a line; names in `judged` have one already."""
    places = _candidates(seen, judged)
    tensors = [seen.inventory.tensors[place] for place in places]
    pairs = copies(tensors)
    names = [seen.inventory.names[place] for place in places] if pairs else []
    clones = _Clones(seen)
    modules: dict[str, list[str]] = {}
    found: dict[int, list[Copy]] = {}
    for copy in pairs:
        is_table = not tensors[copy.first].requires_grad and not tensors[copy.other].requires_grad
        owners = clones.outermost((names[copy.first], names[copy.other]))
        if (is_table and clones.is_trained) or (owners and clones.are_fresh(owners)):
            continue
        if owners and copy.transform == IDENTITY:
            others = modules.setdefault(owners[0], [])
            others += [] if owners[1] in others else [owners[1]]
        else:
            found.setdefault(copy.first, []).append(copy)
    yield from (clones.group([first, *others]) for first, others in modules.items())
    for first, others in found.items():
        transforms = [IDENTITY, *(_expression(spelled(names[first]), copy) for copy in others)]
        yield group_of("equal", [names[first], *(names[copy.other] for copy in others)], transforms, tensors[first])


def _candidates(seen: Seen, judged: Collection[str]) -> list[int]:
    """Return the positions of the Parameters, one for each memory."""
    again = {place for places in seen.inventory.sharing.groups for place in places[1:]}
    own = [place for place in range(seen.inventory.parameters) if place not in again]
    return [place for place in own if seen.inventory.names[place] not in judged] if judged else own


def _expression(source: str, copy: Copy) -> str:
    if copy.factor == 1:
        return copy.transform
    return f"{copy.factor:.6g} * {source}{'' if copy.transform == IDENTITY else copy.transform}"


class _Clones:
    """Modules that are equal through and through."""

    def __init__(self, seen: Seen) -> None:
        self._shelf = seen.inventory
        self._known: dict[tuple[str, ...], bool] = {}

    @cached_property
    def is_trained(self) -> bool:
        """Whether anything is."""
        return any(tensor.requires_grad for tensor in self._shelf.tensors)

    def outermost(self, pair: tuple[str, str]) -> tuple[str, ...] | None:
        """Return the outermost modules around two names that are equal in all they own, more than one tensor each."""
        return next((owners for owners in reversed(list(paths(pair))) if self._are_equal(owners)), None)

    def are_fresh(self, owners: tuple[str, ...]) -> bool:
        """Tell whether equal modules were cloned and never trained: there are fresh constants in them.

        `copy.deepcopy` of a layer, as `nn.TransformerEncoder` makes them, leaves norms at one and biases at zero.
        """
        return any(_is_constant(tensor) for tensor in self._inside(owners[0]).values())

    def group(self, owners: list[str]) -> Group:
        """Return equal modules as a group."""
        inside = self._inside(owners[0])
        transforms = (IDENTITY,) * len(owners)
        parts = [
            group_of("equal", [f"{owner}.{name}" for owner in owners], transforms, tensor)
            for name, tensor in inside.items()
        ]
        return whole(tuple(owners), parts)

    def _are_equal(self, owners: tuple[str, ...]) -> bool:
        if owners not in self._known:
            one, other = (self._inside(path) for path in owners)
            same = one.keys() == other.keys() and len(one) > 1
            self._known[owners] = same and all(equal_values(one[name], other[name]) for name in one)
        return self._known[owners]

    def _inside(self, path: str) -> dict[str, Tensor]:
        return self._by_owner.get(path, {})

    @cached_property
    def _by_owner(self) -> dict[str, dict[str, Tensor]]:
        inside: dict[str, dict[str, Tensor]] = {}
        for name, tensor in zip(self._shelf.names[: self._shelf.parameters], self._shelf.tensors, strict=False):
            for owner in above(name):
                inside.setdefault(owner, {})[name[len(owner) + 1 :]] = tensor
        return inside


def _is_constant(tensor: Tensor) -> bool:
    return is_readable(tensor) and tensor.numel() > 1 and bool((tensor == tensor.flatten()[0]).all())
