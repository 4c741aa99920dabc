"""Undoing: `untie` gives a target memory of its own.

Owns: the way out of a tie. Read next: `retie.py`.
"""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from tied.algebra import show_address
from tied.algebra.parser import parse_address
from tied.binding.commit.transaction import Transaction, on_the_way
from tied.binding.followers.optimizers import Optimizers, take_up
from tied.binding.followers.transformers_keys import leave
from tied.binding.late_reading import is_late, read, uninstall
from tied.binding.link import Link
from tied.binding.slots import ModuleTree, links
from tied.binding.tie import unwrapped
from tied.errors import KindError, TieWarning, during
from tied.ledger import Tie, entries


def untie(model: nn.Module, target: str | None = None, *, optimizer: Any = None) -> tuple[Tie, ...]:
    """Give targets a Parameter of their own, with today's values; the sources stay as they are.

    Outputs do not change. From now on the two are trained apart. The new Parameters stand where they stood before
    the tie in `named_parameters()`, with the class and the attributes (`no_decay`) that they had then.

    Args:
        model: Changed in place.
        target: The address of a tied parameter, or of a module: every tie whose target lies in it. None
            unties the whole model, ready for tools that know no ties (export, quantization, scripting).
        optimizer: The optimizer that trains the model already, or a list of them: the new Parameters are stepped
            where their sources are, and begin with the moments of their sources' entries. One that is not handed
            over says so at its next step.

    Returns:
        The ties that were undone.

    Raises:
        AddressError: `target` names nothing.
        KindError: nothing at `target` is tied.

    Example:
        >>> from tied import tie
        >>> model = nn.ModuleDict({"encoder": nn.Linear(3, 5), "decoder": nn.Linear(5, 3)})
        >>> _ = tie(model, "decoder.weight", "encoder.weight.T")
        >>> untie(model, "decoder.weight")
        (Tie('decoder.weight = encoder.weight.T'),)
        >>> sum(p.numel() for p in model.parameters())
        38
    """
    with during(f"untie(model, {target!r})" if target is not None else "untie(model)"):
        model = unwrapped(model)
        found = _selected(model, target)
        optimizers = Optimizers(optimizer, model)
        with torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext():
            own = [_own(link, read(module, tie.address[-1], link)) for tie, module, link in found]
        for (tie, _, link), tensor in zip(found, own, strict=True):
            take_up(tie, tensor, link, optimizers)
        last = {m: (tie, frozenset(name for name in links(m) if is_late(m, name))) for tie, m, _ in found}
        with Transaction(on_the_way(model, (tie for tie, _, _ in found))) as undo:
            for (tie, module, link), tensor in zip(found, own, strict=True):
                link.forget()
                end, names = last[module]
                uninstall(module, tie.address[-1], tensor, also=() if end is tie else names)
            note = leave(model, [tie for tie, _, _ in found], undo)
            undo.callback(optimizers.undo())
            optimizers.commit()
        if note:
            warnings.warn(note, TieWarning, stacklevel=2)
        return tuple(tie for tie, _, _ in found)


def _selected(model: nn.Module, target: str | None) -> list[tuple[Tie, nn.Module, Link]]:
    found = list(entries(model))
    if target is None:
        return found
    tree = ModuleTree(model)
    address = parse_address(target, tree)
    tree.slot(address)
    chosen = [entry for entry in found if entry[0].address[: len(address)] == address]
    if not chosen:
        raise KindError(
            f"'{show_address(address)}' is not tied.",
            found="an ordinary parameter or module",
            expected="the target of a tie",
            fix="list the ties with tied.ties(model)",
        )
    return chosen


def _own(link: Link, value: Tensor) -> Tensor:
    """Return a copy of the value that stands by itself: a Parameter, or a buffer where the sources are buffers."""
    copy = value.detach().clone(memory_format=torch.contiguous_format)
    if link.fixed() == set(link.sources):
        return copy
    return link.marks.parameter(copy, requires_grad=any(source.requires_grad for source in link.tensors().values()))
