"""Uses: the gradient of each leaf of a reference, split by what reads it.

Owns: marking each read of a weight, and pulling its gradient back to the leaf. Must not judge the parts: `tension.py`
words them. Read next: `tension.py`.

Before a forward every slot is filled with an alias of its value, and before each call of a module its slots are filled
with new aliases. Each alias gets a gradient of its own; the chain rule through the slot's definition makes it a
part of the leaf's.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tied.checking.repointing import hooks_of
from tied.ledger import links
from tied.proving.claims import shown
from tied.proving.objective import Objective
from tied.proving.reference import Reference
from tied.proving.working_copy import roll

Parts = dict[str, dict[str, Tensor]]


def use_of(tensor: Tensor) -> Tensor:
    """Return the same memory with a gradient of its own; of all views, only `alias` lets sparse gradients through."""
    use = torch.ops.aten.alias(tensor)
    if use.requires_grad:
        use.retain_grad()
    return use


def split(reference: Reference, objective: Objective, seed: int) -> Parts:
    """Compute the gradient of every leaf, and return its parts by use, by the leaf's name.

    The parts of a leaf add up to `leaf.grad`. What reads a leaf past its slot (a list that holds the Parameter) is
    one part, called "held elsewhere".
    """
    for leaf in reference.parameters():
        leaf.grad = None
    marks = Marks(reference)
    whole = {name: _whole(leaf) for name, leaf in reference.leaves.items() if leaf.requires_grad}
    with marks.watching():
        roll(seed)
        objective(reference.slots.model).backward()
    for _, handle in whole.values():
        handle.remove()
    parts: Parts = {name: {} for name in reference.leaves}
    for name, uses in marks.graded().items():
        for label, gradient in uses.items():
            for leaf, part in reference.pull_back(name, gradient).items():
                parts[leaf][label] = part
    return {name: found | _elsewhere(whole[name][0] if name in whole else [], found) for name, found in parts.items()}


def _whole(leaf: Tensor) -> tuple[list[Tensor], RemovableHandle]:
    """Return a list for the leaf's gradients before its hooks change them, one for each run of the engine."""
    kept, later = list[Tensor](), hooks_of(leaf)
    leaf._backward_hooks = None  # torch runs them in the order in which they were registered
    handle = leaf.register_hook(lambda gradient: kept.append(gradient.detach().clone()))
    for hook in later:
        leaf.register_hook(hook)
    return kept, handle


def _elsewhere(gradients: list[Tensor], parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what the parts leave of a gradient, if that is more than rounding."""
    if not gradients:
        return {}
    whole = sum(part.to_dense() if part.is_sparse else part for part in gradients)
    assert isinstance(whole, Tensor)
    rest = whole - sum(parts.values(), torch.zeros_like(whole))
    largest = max(float(part.abs().max()) for part in (whole, *parts.values())) if whole.numel() else 0.0
    is_rounding = not whole.numel() or float(rest.abs().max()) <= 100 * torch.finfo(rest.dtype).eps * largest
    return {} if is_rounding else {"held elsewhere": rest}


class Marks:
    """The aliases that stand in the slots of a reference during a forward."""

    def __init__(self, reference: Reference) -> None:
        """Fill every slot with an alias of its value."""
        self.reference = reference
        owners = {n: place for n, place in reference.slots.owners.items() if place[1] not in links(place[0])}
        self.values = reference.values(owners)
        self.between = {name: use_of(tensor) for name, tensor in self.values.items()}
        self.calls: dict[str, list[Tensor]] = {name: [] for name in owners}
        self._inside: dict[str, list[Tensor]] = {name: [tensor] for name, tensor in self.between.items()}
        self._names: dict[nn.Module, list[str]] = {}
        for name, (module, _) in owners.items():
            self._names.setdefault(module, []).append(name)
        for name, tensor in self.between.items():
            reference.put(name, tensor)

    @contextmanager
    def watching(self) -> Generator[None]:
        """Give each call of a module aliases of its own."""
        handles: list[Any] = []
        for module in self._names:
            handles.append(module.register_forward_pre_hook(self._enter, prepend=True))
            handles.append(module.register_forward_hook(self._leave, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, module: nn.Module, _: object) -> None:
        for name in self._names[module]:
            use = use_of(self.values[name])
            self.calls[name].append(use)
            self._inside[name].append(use)
            self.reference.put(name, use)

    def _leave(self, module: nn.Module, *_: object) -> None:
        for name in self._names[module]:
            self._inside[name].pop()
            self.reference.put(name, self._inside[name][-1])

    def graded(self) -> dict[str, dict[str, Tensor]]:
        """Return the gradients of the aliases, by slot and by the use's label."""
        return {name: self._labelled(name) for name in self.values}

    def _labelled(self, name: str) -> dict[str, Tensor]:
        calls = [gradient for use in self.calls[name] if (gradient := _dense(use)) is not None]
        between, word = _dense(self.between[name]), shown(name)
        labels = [word] if len(calls) == 1 else [f"{word}, call {number}" for number in range(1, len(calls) + 1)]
        if between is not None:
            labels.append(f"{word}, read from outside" if calls else word)
            calls.append(between)
        return dict(zip(labels, calls, strict=True))


def _dense(use: Tensor) -> Tensor | None:
    gradient = use.grad if use.requires_grad else None
    return gradient.to_dense() if gradient is not None and gradient.is_sparse else gradient
