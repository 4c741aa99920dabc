"""Mending: `retie` puts back what was cut from outside.

Owns: finding ties that do not hold any more, and restoring them. Must not choose between two values by itself.
Read next: `tying.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn
from torch.nn import Parameter

from tied.algebra import Address, Ref, address_of, parse, show_address
from tied.algebra.parser import parse_address
from tied.algebra.projection import agree
from tied.binding.commit.transaction import Transaction, on_the_way
from tied.binding.computed_source import remember_attribute
from tied.binding.followers.optimizers import Optimizers, let_go
from tied.binding.late_reading import install, is_late
from tied.binding.link import Link
from tied.binding.live.live_slots import live_slots
from tied.binding.slots import ModuleTree, Slot, links
from tied.binding.state_dict_hooks import check_winner
from tied.binding.tie import declare, unwrapped
from tied.errors import AddressError, ConflictError, during
from tied.ledger import Tie, entries, lost

Keep = Literal["source", "target"]


class Mended(NamedTuple):
    """What `retie` found at one target, and what it did."""

    target: str
    found: str
    kept: str

    def __str__(self) -> str:
        """Return one line."""
        return f"{self.target}: {self.found}; kept {self.kept}"


def retie(model: nn.Module, *, keep: Keep | None = None, optimizer: Any = None) -> tuple[Mended, ...]:
    """Put back what was cut from outside.

    Because a target reads its source at each access, most operations cannot cut a tie. What can: replacing the
    target's module, writing into `module._parameters` directly, and resetting `module.__class__`.

    Args:
        model: Changed in place, and only if every tie can be mended.
        keep: Whose value wins where the two differ; None refuses to throw either away.
        optimizer: As in `tie`.

    Returns:
        One entry for each tie that was cut; empty when all hold.

    Raises:
        ConflictError: target and source differ, and `keep` names no winner.
        ShapeError: a target was replaced by something of another shape.

    Example:
        >>> from tied import tie
        >>> model = nn.ModuleDict({"embed": nn.Embedding(7, 3), "head": nn.Linear(3, 7)})
        >>> _ = tie(model, "head.weight", "embed.weight")
        >>> model["head"] = nn.Linear(3, 7)
        >>> print(*retie(model, keep="source"))
        head.weight: its module was replaced, with other values; kept source
    """
    with during(f"retie(model, keep={keep!r})"):
        check_winner(keep, ("source", "target"))
        model = unwrapped(model)
        optimizers = Optimizers(optimizer, model)
        overwritten = [entry for entry in entries(model) if is_cut(entry[1], entry[0].address[-1])]
        replaced = list(_replaced(model))
        changed = [on_the_way(model, (tie for tie, _, _ in overwritten))]
        changed += [on_the_way(home, [tie]) for home, _, tie in replaced]
        with Transaction(chain.from_iterable(changed)) as undo:
            mended = [_mend(entry, keep) for entry in overwritten]
            mended += [_put_back(entry, keep) for entry in replaced]
            for entry in overwritten:
                _mend(entry, keep, undo, optimizers)
            for entry in replaced:
                _put_back(entry, keep, undo, optimizers)
            undo.callback(optimizers.undo())
            optimizers.commit()
        return tuple(mended)


class Lost(NamedTuple):
    """A declared tie whose target's module was replaced."""

    home: nn.Module
    path: Address
    tie: Tie


def _replaced(model: nn.Module) -> Iterator[Lost]:
    for path, home in model.named_modules():
        tree, place = ModuleTree(home), address_of(path)
        for target, source in lost(home).items():
            tie = Tie(parse_address(target), parse(source))
            try:
                slot = tree.slot(tie.address)
            except AddressError:
                continue  # the target does not exist any more, and needs no source
            if slot.name not in links(slot.owner) and not _is_its_source(tree, slot, tie):
                yield Lost(home, place, tie)


def _is_its_source(tree: ModuleTree, slot: Slot, tie: Tie) -> bool:
    """Tell whether the source's module was put in the place of the target's, so that the two are one tensor."""
    if not isinstance(tie.source, Ref):
        return False
    source = tree.slot(tie.source.address)
    return source.owner is slot.owner and source.name == slot.name


def _put_back(
    lost: Lost, keep: Keep | None, undo: Transaction | None = None, optimizers: Optimizers | None = None
) -> Mended:
    """Say what would be done for a tie; do it, where there is a way back."""
    tree, tie = ModuleTree(lost.home), lost.tie
    target = tree.tensor_slot(tie.address).tensor.detach()
    sources = {address: tree.tensor_slot(address).tensor.detach() for address in tie.source.sources()}
    value = tie.source.value(sources)
    same = value.shape == target.shape and agree(value, target, tie.source)
    if not same and keep is None:
        raise _undecided(tie)
    if undo is not None:
        for tensor in sources.values() if keep == "target" else ():
            undo.keep(tensor)
        declare(lost.home, [tie], optimizers, keep="source" if same else keep or "source", buffers=True)
    what = "its module was replaced"
    address = (*lost.path, *tie.address)
    return Mended(".".join(address), what if same else f"{what}, with other values", "both" if same else str(keep))


def is_cut(module: nn.Module, name: str) -> bool:
    """Tell whether a tied attribute was overwritten behind its module's back."""
    slots = live_slots(module, name)
    if slots is not None:
        return slots.is_split(name)
    return not is_late(module, name) or _impostor(module, name) is not None


def _impostor(module: nn.Module, name: str) -> Tensor | None:
    for place in (module._parameters, module._buffers, module.__dict__):
        tensor = dict.get(place, name)
        if isinstance(tensor, Tensor):
            return tensor
    return None


def _mend(
    entry: tuple[Tie, nn.Module, Link],
    keep: Keep | None,
    undo: Transaction | None = None,
    optimizers: Optimizers | None = None,
) -> Mended:
    """Say what would be done for a tie; do it, where there is a way back."""
    (tie, module, link), name = entry, entry[0].address[-1]
    impostor = _impostor(module, name)
    value = link.connect().read().detach()
    same = impostor is None or agree(value, impostor.detach(), link.expression)
    if not same and keep is None:
        raise _undecided(tie)
    if undo is not None:
        if isinstance(impostor, Parameter) and optimizers is not None:
            sources = dict(zip(tie.source.sources(), link.tensors().values(), strict=True))
            let_go(tie, impostor, sources, optimizers, won=not same and keep == "target")
        if not same and keep == "target":
            assert impostor is not None
            for source in link.sources.values():
                owner = source.find(link.home)
                undo.callback(remember_attribute(owner, source.name) if owner is not None else int)
            link.write(impostor.detach())
        install(module, name, link)
        module.__dict__.pop(name, None)
    what = "the class of its module was reset" if impostor is None else "a tensor of its own"
    return Mended(tie.target, what if same else f"{what}, with other values", "both" if same else str(keep))


def _undecided(tie: Tie) -> ConflictError:
    return ConflictError(
        f"'{show_address(tie.address)}' was given a value of its own that differs from its source's.",
        found=f"{tie} does not hold",
        expected="the name of the value to keep",
        fix='retie(model, keep="source") or retie(model, keep="target")',
    )
