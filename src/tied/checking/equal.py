"""Equal copies as groups: which Parameters of a model hold equal values in separate memory, and which are news.

Owns: what is left out: what is declared (and judged there), tables that nobody trains, and modules that were cloned
and never trained. Must not compare tensors itself: `copies.py` does. Read next: `folding.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import Tensor

from tied.checking.copies import Copy, copies
from tied.checking.declarations import Seen
from tied.checking.folding import paths
from tied.checking.groups import group_of
from tied.checking.report import IDENTITY, Group


def equal_groups(seen: Seen, judged: Collection[str]) -> Iterator[Group]:
    """Yield the groups of equal copies that are worth a line; names in `judged` have one already."""
    names, tensors = _candidates(seen, judged)
    clones = _Clones(seen)
    found: dict[int, list[Copy]] = {}
    for copy in copies(tensors):
        pair = names[copy.first], names[copy.other]
        is_table = not tensors[copy.first].requires_grad and not tensors[copy.other].requires_grad
        if not (is_table and clones.is_trained) and not clones.are_fresh(pair):
            found.setdefault(copy.first, []).append(copy)
    for first, others in found.items():
        transforms = [IDENTITY, *(_expression(names[first], copy) for copy in others)]
        yield group_of("equal", [names[first], *(names[copy.other] for copy in others)], transforms, tensors[first])


def _candidates(seen: Seen, judged: Collection[str]) -> tuple[list[str], list[Tensor]]:
    """Return the Parameters, one for each memory."""
    chosen: dict[int, tuple[str, Tensor]] = {}
    for tensor, names, is_own in zip(seen.shelf.tensors, seen.shelf.names, seen.shelf.parameters, strict=True):
        if is_own and names[0] not in judged:
            chosen.setdefault(seen.memory[names[0]], (names[0], tensor))
    return [name for name, _ in chosen.values()], [tensor for _, tensor in chosen.values()]


def _expression(source: str, copy: Copy) -> str:
    if copy.factor == 1:
        return copy.transform
    return f"{copy.factor:.6g} * {source}{'' if copy.transform == IDENTITY else copy.transform}"


class _Clones:
    """Modules that are equal through and through, with fresh constants in them: clones that were never trained.

    `copy.deepcopy` of a layer, as `nn.TransformerEncoder` makes them, leaves norms at one and biases at zero.
    """

    def __init__(self, seen: Seen) -> None:
        own = [i for i, is_own in enumerate(seen.shelf.parameters) if is_own]
        self._named = {name: seen.shelf.tensors[i] for i in own for name in seen.shelf.names[i]}
        self._known: dict[tuple[str, ...], bool] = {}
        self.is_trained = any(tensor.requires_grad for tensor in self._named.values())

    def are_fresh(self, pair: tuple[str, str]) -> bool:
        """Tell whether two names lie in such clones."""
        return any(self._is_fresh(owners) for owners in paths(pair))

    def _is_fresh(self, owners: tuple[str, ...]) -> bool:
        if owners not in self._known:
            one, other = (self._inside(path) for path in owners)
            same = one.keys() == other.keys() and len(one) > 1 and all(_equal(one[n], other[n]) for n in one)
            self._known[owners] = same and any(_is_constant(tensor) for tensor in one.values())
        return self._known[owners]

    def _inside(self, path: str) -> dict[str, Tensor]:
        prefix = f"{path}."
        return {name.removeprefix(prefix): t for name, t in self._named.items() if name.startswith(prefix)}


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one.detach(), other.detach())


def _is_constant(tensor: Tensor) -> bool:
    return tensor.numel() > 1 and bool((tensor == tensor.flatten()[0]).all())
