"""The one-parameter reference: the model in which every claim holds, because only one tensor is there to hold it.

Owns: choosing one leaf for each group of sharing slots, and computing every other slot from it. Must not use the
mechanism that ties a model (`binding`), which is what is being examined. Read next: `verify.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from tied.errors import SharingError
from tied.ledger import LINKS, entries, links
from tied.proving.claims import Claim, Slots, same, shown
from tied.proving.working_copy import reach

Mark = Callable[[str, Tensor], Tensor]


class Reference:
    """A model with one leaf for each group of sharing slots.

    Law: before each forward every slot is filled with a function of the leaves, and with nothing else.

    Attributes:
        slots: Those of the model, which is a working copy that nobody else uses, and which is changed.
        claims: How each slot that is no leaf is computed, by its name.
        leaves: The tensors that are trained, no two over one memory, by the name of the slot they stand in.
        groups: The names that are joined by claims, those of leaves first.
    """

    def __init__(self, model: nn.Module, claims: Iterable[Claim]) -> None:
        """Take possession of `model`, and make every claim true in it."""
        self.slots = Slots(model)
        self.claims: dict[str, Claim] = {}
        for claim in claims:
            self._accept(claim)
        self.leaves = self._make_leaves()
        self.groups = self._make_groups()
        self._unlink()
        self.fill()

    # -- building -----------------------------------------------------------------------------------

    def _accept(self, claim: Claim) -> None:
        """Have a claim define its target, unless the target is defined already, and by the same leaves."""
        target = self._same_as(claim.target)
        if self._roots(target) == self._roots(*claim.sources) and self._agrees(claim):
            return
        if target in self.claims or target in self._roots(*claim.sources):
            raise _contradiction(claim, self.claims.get(claim.target))
        self.claims[target] = claim

    def _agrees(self, claim: Claim) -> bool:
        return same(claim.value(self.slots.tensor), self.slots.tensor(claim.target))

    def _same_as(self, name: str) -> str:
        """Return the slot that holds the very tensor of another one."""
        while name in self.claims and self.claims[name].is_identity:
            (name,) = self.claims[name].sources
        return name

    def _roots(self, *names: str) -> frozenset[str]:
        """Return the names of the leaves that the slots are computed from."""
        found: set[str] = set()
        for name in names:
            claim = self.claims.get(name)
            found |= {name} if claim is None else self._roots(*claim.sources)
        return frozenset(found)

    def _make_leaves(self) -> dict[str, Parameter]:
        held = self.slots.parameters()
        leaves = {name: parameter for name, parameter in held.items() if name not in self.claims}
        for source in dict.fromkeys(source for claim in self.claims.values() for source in claim.sources):
            if source not in self.slots:
                leaves[source] = self._memory(source)
        trained = {root for name, parameter in held.items() if parameter.requires_grad for root in self._roots(name)}
        for name, parameter in leaves.items():
            parameter.requires_grad_(name in trained)
        return leaves

    def _memory(self, source: str) -> Parameter:
        """Return the memory under several tensors none of which covers it, as one vector."""
        held = self.slots.parameters()
        over = [held[claim.target] for claim in self.claims.values() if source in claim.sources]
        first = min(over, key=lambda tensor: tensor.data_ptr())
        length = max((t.data_ptr() - first.data_ptr()) // t.element_size() + reach(t) for t in over)
        whole = torch.as_strided(first.detach(), (length,), (1,))
        return Parameter(whole)

    def _make_groups(self) -> list[tuple[str, ...]]:
        groups: list[set[str]] = []
        for target in self.claims:
            group = {target} | self._roots(target)
            joined = [other for other in groups if other & group]
            groups = [*(other for other in groups if not other & group), group.union(*joined)]
        order = [name for name in (*self.leaves, *self.slots.owners) if name in self.slots]
        return [tuple(name for name in dict.fromkeys(order) if name in group) for group in groups]

    def _unlink(self) -> None:
        """Turn tied attributes that are claimed into ordinary ones, which `fill` fills."""
        for name in self.claims:
            module, attribute = self.slots.owners[name]
            module.__dict__[LINKS] = {n: link for n, link in links(module).items() if n != attribute}
            module.__dict__["_parameters"] = module._parameters.copy()  # an ordinary dict

    def late(self) -> tuple[str, ...]:
        """Return the ties that were left to read their sources, which are computed by their modules."""
        return tuple(str(tie) for tie, _, _ in entries(self.slots.model))

    # -- using --------------------------------------------------------------------------------------

    def values(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Compute slots from the leaves, each once."""
        return self._values(names, self.leaves)

    def _values(self, names: Iterable[str], leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}

        def read(name: str) -> Tensor:
            if name not in found:
                claim, leaf = self.claims.get(name), leaves.get(name)
                found[name] = leaf if leaf is not None else claim.value(read) if claim else self.slots.tensor(name)
            return found[name]

        return {name: read(name) for name in names}

    def fill(self, mark: Mark = lambda name, tensor: tensor) -> None:
        """Compute every slot that shares from the leaves; `mark` may put something between a value and its slot."""
        for name, tensor in self.values(name for group in self.groups for name in group).items():
            self.put(name, mark(name, tensor))

    def put(self, name: str, tensor: Tensor) -> None:
        """Put a tensor into a slot."""
        module, attribute = self.slots.owners[name]
        slots: dict[str, Any] = module._parameters
        slots[attribute] = tensor
        if isinstance(module, nn.RNNBase) and "_flat_weights" in module.__dict__:  # torch keeps a list of them
            module._flat_weights = [getattr(module, each) for each in module._flat_weights_names]

    def by_slot(self, of: Callable[[str], Tensor]) -> dict[str, Tensor]:
        """Return what `of` says of each leaf, by a slot's name; where no slot is the leaf, by each slot over it."""
        found = {name: of(name) for name in self.leaves if name in self.slots}
        for claim in self.claims.values():
            if not self.leaves.keys().isdisjoint(set(claim.sources) - self.slots.owners.keys()):
                found[claim.target] = claim.value(of)
        return found

    def pull_back(self, name: str, gradient: Tensor) -> dict[str, Tensor]:
        """Return what a gradient at a slot is at the leaves that it is computed from."""
        names = [leaf for leaf in sorted(self._roots(name) & self.leaves.keys()) if self.leaves[leaf].requires_grad]
        bare = {leaf: tensor.detach() for leaf, tensor in self.leaves.items()}  # without hooks
        (value,) = self._values([name], bare | {leaf: bare[leaf].requires_grad_() for leaf in names}).values()
        found = torch.autograd.grad(value, [bare[leaf] for leaf in names], gradient, allow_unused=True)
        parts: dict[str, Tensor | None] = dict(zip(names, found, strict=True))
        return {leaf: part for leaf, part in parts.items() if part is not None}

    def parameters(self) -> list[Parameter]:
        """Return the leaves, each once, in the order of the slots they stand in."""
        return list({id(leaf): leaf for leaf in self.leaves.values()}.values())


def _contradiction(claim: Claim, known: Claim | None) -> SharingError:
    return SharingError(
        f"'{shown(claim.target)}' is claimed to be two different things.",
        found=f"{shown(claim.target)} = {claim.text}"
        + (f", and {shown(known.target)} = {known.text}" if known is not None else ", which is computed from it"),
        expected="one definition of each slot",
        fix="leave one of the two claims out",
    )
