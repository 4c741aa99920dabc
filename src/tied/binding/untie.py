"""Undoing: `untie` gives a target memory of its own.

Owns: the way out of a tie. Read next: `retie.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from tied.algebra import show_address
from tied.algebra.parser import parse_address
from tied.binding.commit.transaction import Transaction, on_the_way
from tied.binding.late_reading import is_late, read, uninstall
from tied.binding.link import Link
from tied.binding.slots import ModuleTree, links
from tied.binding.tie import unwrapped
from tied.binding.transformers_keys import leave
from tied.errors import KindError, during
from tied.ledger import Tie, entries


def untie(model: nn.Module, target: str | None = None) -> tuple[Tie, ...]:
    """Give targets a Parameter of their own, with today's values; the sources stay as they are.

    Outputs do not change. From now on the two are trained apart; an optimizer must be told of the new
    Parameters. They stand where they stood before the tie in `named_parameters()`.

    Args:
        model: Changed in place.
        target: The address of a tied parameter, or of a module: every tie whose target lies in it. None
            unties the whole model, ready for tools that know no ties (export, quantization, scripting).

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
        own = [_own(link, read(module, tie.target[-1], link)) for tie, module, link in found]
        last = {m: (tie, frozenset(name for name in links(m) if is_late(m, name))) for tie, m, _ in found}
        with Transaction(on_the_way(model, (tie for tie, _, _ in found))) as undo:
            for (tie, module, link), tensor in zip(found, own, strict=True):
                link.forget()
                leave(model, tie, undo)
                end, names = last[module]
                uninstall(module, tie.target[-1], tensor, also=() if end is tie else names)
        return tuple(tie for tie, _, _ in found)


def _selected(model: nn.Module, target: str | None) -> list[tuple[Tie, nn.Module, Link]]:
    found = list(entries(model))
    if target is None:
        return found
    tree = ModuleTree(model)
    address = parse_address(target, tree)
    tree.slot(address)
    chosen = [entry for entry in found if entry[0].target[: len(address)] == address]
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
    return Parameter(copy, requires_grad=any(tensor.requires_grad for tensor in link.tensors().values()))
