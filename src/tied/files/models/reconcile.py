"""One value for each memory: what the values that a file has for several names come to.

Owns: the joint solution over all names that share, by the chosen winner, and how far each name is off.
Must not know modules or files. Read next: `load.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from tied.algebra import Address, Expression, invert, project
from tied.algebra.projection import agree, is_sparse
from tied.binding.state_dict_hooks import _refuse_gaps
from tied.errors import ConflictError, InverseError
from tied.files.reading.file_ledger import name_of, reference
from tied.files.reading.refusal import shown

Winner = Literal["error", "source", "target", "mean"]
WINNERS = ("error", "source", "target", "mean")


@dataclass
class Reconciled:
    """What was agreed on.

    Attributes:
        values: A value for each source that the file gave, itself or through a target.
        gaps: Where names differed, how far each is from what it is now: |found - kept| / |found|, Euclidean.
    """

    values: dict[str, Tensor]
    gaps: dict[str, float] = field(default_factory=dict[str, float])


def reconcile(
    given: Mapping[str, Tensor],
    sources: Mapping[str, Expression],
    *,
    present: Callable[[str], Tensor],
    fixed: Collection[str],
    winner: Winner,
) -> Reconciled:
    """Find the values of the sources that the given names ask for.

    Law: where the names agree, every source has the value that the file gives, bit for bit, and every target
    reads its own; where they differ, `"mean"` is the least-squares source over all of them at once.

    Args:
        given: What the file has, by name: sources and targets.
        sources: The expression that each target is.
        present: Returns the present value of a source: what no name says stays as it is.
        fixed: Sources that are constants: index buffers, signs.
        winner: Who wins where names differ.

    Raises:
        ConflictError: They differ, and nobody was named to win, or targets differ among themselves.
        InverseError: No source gives what a target asks for.
    """
    found = Reconciled({name: tensor for name, tensor in given.items() if name not in sources})
    targets = {name: sources[name] for name in given if name in sources}
    for group in _connected(targets, fixed):
        _Group({name: targets[name] for name in group}, given, present, fixed).settle(winner, found)
    return found


def _connected(targets: Mapping[str, Expression], fixed: Collection[str]) -> Iterable[list[str]]:
    """Return the targets in groups that have a source in common."""
    parents: dict[str, str] = {}

    def root(name: str) -> str:
        while parents.setdefault(name, name) != name:
            parents[name] = parents[parents[name]]
            name = parents[name]
        return name

    free = {t: [name_of(a) for a in e.sources() if name_of(a) not in fixed] or [t] for t, e in targets.items()}
    for first, *others in free.values():
        for other in others:
            parents[root(other)] = root(first)
    groups: dict[str, list[str]] = {}
    for target, (first, *_) in free.items():
        groups.setdefault(root(first), []).append(target)
    return groups.values()


class _Group:
    """Targets that share sources, and what the file says of all of them."""

    def __init__(
        self,
        targets: Mapping[str, Expression],
        given: Mapping[str, Tensor],
        present: Callable[[str], Tensor],
        fixed: Collection[str],
    ) -> None:
        self.targets = targets
        self.wanted = {name: given[name] for name in targets}
        self.names = {a: name_of(a) for expression in targets.values() for a in expression.sources()}
        self.given = {a: given[name] for a, name in self.names.items() if name in given}
        self.fixed = {a for a, name in self.names.items() if name in fixed}
        like = next(iter(self.wanted.values()))
        self.tensors = {a: self.given[a] if a in self.given else _like(present(n), like) for a, n in self.names.items()}
        self.now = dict(self.tensors)

    def settle(self, winner: Winner, found: Reconciled) -> None:
        """Find the values of the group's sources, and add them to `found`."""
        try:
            self.complete()
            differing = self.differing()
        except InverseError:
            if winner != "mean":
                raise
            differing = list(self.targets)
        hopeless = differing if winner == "error" else [t for t in differing if winner == "source" and self.lacks(t)]
        if hopeless:
            raise self.conflict(hopeless[0])
        if differing and winner == "target":
            self.take_targets()
        if differing and winner == "mean":
            self.take_mean()
        for target, wanted in self.wanted.items():
            _refuse_gaps(target, {a: self.now[a] for a in self.lacks(target)}, wanted)
        known = {a: t for a, t in self.now.items() if a in self.given or t is not self.tensors[a]}
        found.values.update({self.names[a]: tensor for a, tensor in known.items()})
        if differing:
            found.gaps.update(self.gaps())

    def complete(self) -> None:
        """Give the sources that the file lacks what the targets ask for."""
        known = set(self.given) | self.fixed
        lone = {target: e for target, e in self.targets.items() if self.lacks(target)}
        if len(lone) > 1 and all(is_sparse(expression, known) for expression in lone.values()):
            self.now |= project([(e, self.wanted[target]) for target, e in lone.items()], self.tensors, known)
        else:
            for target, expression in lone.items():
                self.invert(target, known)
                known |= set(expression.sources())

    def lacks(self, target: str) -> list[Address]:
        """Return the sources of a target that the file does not give."""
        return [a for a in self.targets[target].sources() if a not in self.given and a not in self.fixed]

    def invert(self, target: str, known: Collection[Address]) -> None:
        """Change the sources that are not known, so that the target is what the file says."""
        tensors = {a: self.now[a] for a in self.targets[target].sources()}
        self.now |= invert(self.targets[target], self.wanted[target], tensors, set(known) & set(tensors))

    def differing(self) -> list[str]:
        """Return the targets that are not what the sources make of them."""
        return [target for target in self.targets if not self.holds(target)]

    def holds(self, target: str) -> bool:
        value, wanted = self.value(target), self.wanted[target]
        common = torch.promote_types(value.dtype, wanted.dtype)
        return agree(value.to(common), wanted.to(common), self.targets[target])

    def value(self, target: str) -> Tensor:
        expression = self.targets[target]
        return expression.value({a: self.now[a] for a in expression.sources()})

    def uses(self) -> list[tuple[Expression, Tensor]]:
        return [(expression, self.wanted[target]) for target, expression in self.targets.items()]

    def take_targets(self) -> None:
        """Let the targets win over their sources; among themselves they have to agree."""
        self.now = dict(self.tensors)
        if all(is_sparse(expression, self.fixed) for expression in self.targets.values()):
            self.now |= project(self.uses(), self.tensors, self.fixed)
        else:
            for target in self.targets:
                self.invert(target, self.fixed)
        if differing := self.differing():
            raise ConflictError(
                "The targets ask for different values of one source.",
                found=f"no source gives {shown(differing[0])} and the others",
                expected="targets that agree",
                fix="on_conflict='mean' for the least-squares source, or 'source'",
            )

    def take_mean(self) -> None:
        """Take the least-squares sources over everything that the file says."""
        own = [(reference(self.names[a]), tensor) for a, tensor in self.given.items() if a not in self.fixed]
        tensors = {a: _like(tensor, next(iter(self.wanted.values()))) for a, tensor in self.tensors.items()}
        self.now = self.tensors | project([*self.uses(), *own], tensors, self.fixed)

    def gaps(self) -> dict[str, float]:
        """Return how far each name is from what it is now."""
        gaps = {target: distance(self.value(target), wanted) for target, wanted in self.wanted.items()}
        return gaps | {self.names[a]: distance(self.now[a], tensor) for a, tensor in self.given.items()}

    def conflict(self, target: str) -> ConflictError:
        gap, expression = distance(self.value(target), self.wanted[target]), self.targets[target]
        return ConflictError(
            f"{shown(target)} and its source differ in the file, but the model has one tensor for both.",
            found=f"{shown(target)} is {gap:.3g} of its norm away from {expression}",
            expected="equal values, or only one of the names",
            fix="name the winner: on_conflict='source', 'target' or 'mean'",
        )


def _like(tensor: Tensor, value: Tensor) -> Tensor:
    """Return a present value beside one of the file: on its device, and in its dtype if both are floats."""
    dtype = value.dtype if tensor.is_floating_point() and value.is_floating_point() else tensor.dtype
    return tensor.to(value.device, dtype)


def distance(value: Tensor, wanted: Tensor) -> float:
    """Return |value - wanted| / |wanted|, Euclidean; not divided where `wanted` is zero."""
    wide = torch.complex128 if wanted.is_complex() else torch.float64
    norm = float(wanted.to(wide).norm())
    return float((value.to(wide) - wanted.to(wide)).norm()) / (norm or 1.0)
