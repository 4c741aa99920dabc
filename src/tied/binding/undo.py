"""Undoing and mending: `untie` gives a target memory of its own; `retie` puts back what was cut from outside.

Owns: the ways out of a tie. Read next: `tying.py`.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from tied.algebra import Address, show_address
from tied.algebra.parser import parse_address
from tied.algebra.projection import agree
from tied.binding.declare import unwrapped
from tied.binding.late import install, is_late, uninstall
from tied.binding.ledger import Tie, entries
from tied.binding.link import Link
from tied.binding.loading import check_winner
from tied.binding.slots import ModuleTree
from tied.errors import ConflictError, KindError, during


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
        with torch.no_grad():
            own = [_own(link, link.read()) for _, _, link in found]
        for (tie, module, _), tensor in zip(found, own, strict=True):
            uninstall(module, tie.target[-1], tensor)
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


class Mended(NamedTuple):
    """What `retie` found at one target, and what it did."""

    target: Address
    found: str
    kept: str

    def __str__(self) -> str:
        """Return one line."""
        return f"{show_address(self.target)}: {self.found}; kept {self.kept}"


def retie(model: nn.Module, *, keep: Literal["source", "target"] | None = None) -> tuple[Mended, ...]:
    """Put back what was cut from outside: ties that somebody overwrote behind the module's back.

    Because a target reads its source at each access, most operations cannot cut a tie. What can: writing into
    `module._parameters` or `module.__dict__` directly, and resetting `module.__class__`.

    Args:
        model: Changed in place, and only if every tie can be mended.
        keep: Whose value wins where the two differ; None refuses to throw either away.

    Returns:
        One entry for each tie that was cut; empty when all hold.

    Raises:
        ConflictError: target and source differ, and `keep` names no winner.

    Example:
        >>> from tied import tie
        >>> model = nn.ModuleDict({"embed": nn.Embedding(7, 3), "head": nn.Linear(3, 7)})
        >>> _ = tie(model, "head.weight", "embed.weight")
        >>> model["head"]._parameters["weight"] = nn.Parameter(torch.zeros(7, 3))
        >>> print(*retie(model, keep="source"))
        head.weight: a tensor of its own, with other values; kept source
    """
    with during(f"retie(model, keep={keep!r})"):
        check_winner(keep, ("source", "target"))
        model = unwrapped(model)
        cut = [entry for entry in entries(model) if is_cut(entry[1], entry[0].target[-1])]
        mended = [_mend(entry, keep, act=False) for entry in cut]
        for entry in cut:
            _mend(entry, keep, act=True)
        return tuple(mended)


def is_cut(module: nn.Module, name: str) -> bool:
    """Tell whether a tied attribute was overwritten behind its module's back."""
    return not is_late(module, name) or _impostor(module, name) is not None


def _impostor(module: nn.Module, name: str) -> Tensor | None:
    for place in (module._parameters, module._buffers, module.__dict__):
        tensor = place.get(name)
        if isinstance(tensor, Tensor):
            return tensor
    return None


def _mend(entry: tuple[Tie, nn.Module, Link], keep: str | None, *, act: bool) -> Mended:
    (tie, module, link), name = entry, entry[0].target[-1]
    impostor = _impostor(module, name)
    value = link.read().detach()
    same = impostor is None or agree(value, impostor.detach(), link.expression)
    if not same and keep is None:
        raise _undecided(tie)
    if act:
        if not same and keep == "target":
            assert impostor is not None
            link.write(impostor.detach())
        for place in (module._parameters, module._buffers, module.__dict__):
            place.pop(name, None)
        install(module, name, link)
    what = "the class of its module was reset" if impostor is None else "a tensor of its own"
    return Mended(tie.target, what if same else f"{what}, with other values", "both" if same else str(keep))


def _undecided(tie: Tie) -> ConflictError:
    return ConflictError(
        f"'{show_address(tie.target)}' was given a value of its own that differs from its source's.",
        found=f"{tie} does not hold",
        expected="the name of the value to keep",
        fix='retie(model, keep="source") or retie(model, keep="target")',
    )
