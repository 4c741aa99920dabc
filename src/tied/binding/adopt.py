"""Adopting: from what plain torch shares to declared ties, and back.

Owns: `adopt` and `alias`. Must not guess: what cannot be expressed is an error. Read next: `guard.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from tied.algebra import Address, Expression, Ref, parse, show_address
from tied.binding.commit.transaction import Transaction, on_the_way
from tied.binding.followers.optimizers import Optimizers
from tied.binding.late_reading import read, uninstall
from tied.binding.slots import ModuleTree, Slot
from tied.binding.tie import declare, unwrapped
from tied.errors import ConflictError, KindError, during
from tied.ledger import Tie, entries
from tied.memory import IDENTITY, OVERLAP
from tied.memory.view_relation import relation


def adopt(model: nn.Module, *, half_tied: bool = False, equal: bool = False, optimizer: Any = None) -> tuple[Tie, ...]:
    """Turn what a model shares by plain torch into declared ties, which outlive what cuts plain sharing.

    A tensor that stands in several slots (`b.weight = a.weight`) becomes one source, in the first of them
    in the order of `named_parameters`, and ties in the others. Values and outputs do not change.

    Args:
        model: Changed in place, and only if everything can be adopted.
        half_tied: Whether to adopt two Parameters over one memory too (`nn.Parameter(w.t())`).
        equal: Whether to adopt separate Parameters with equal values too, as they are or transposed. Tensors
            whose entries are all the same (fresh norms, zero biases) are not taken for copies.
        optimizer: As in `tie`.

    Returns:
        The new ties.

    Raises:
        ConflictError: two Parameters overlap in memory in a way that no transform expresses.
        KindError: a shared tensor has no shape yet (lazy modules), or `model` is scripted.

    Example:
        >>> model = nn.ModuleDict({"embed": nn.Embedding(7, 3), "head": nn.Linear(3, 7, bias=False)})
        >>> model["head"].weight = model["embed"].weight
        >>> adopt(model)
        (Tie('head.weight = embed.weight'),)
    """
    with during(f"adopt(model, half_tied={half_tied}, equal={equal})"):
        model = unwrapped(model)
        slots = tensor_slots(model)
        _refuse_scripted(model, slots)
        wanted = list(shared(slots))
        known = {tie.address for tie in wanted}
        parameters = [s for s in slots if s.kind == "parameter" and s.address not in known]
        for asked, find in ((half_tied, _over_one_memory), (equal, _equal)):
            for tie in find(parameters) if asked else ():
                if tie.address not in known:
                    known.add(tie.address)
                    wanted.append(tie)
        optimizers = Optimizers(optimizer, model)
        return declare(model, wanted, optimizers, keep="source", buffers=True) if wanted else ()


def tensor_slots(model: nn.Module) -> list[Slot]:
    """Return the slots of a model that hold tensors of their own, in the order of `named_parameters`."""
    return [slot for slot in ModuleTree(model).slots() if slot.kind in ("parameter", "buffer")]


def _refuse_scripted(model: nn.Module, slots: list[Slot]) -> None:
    """Refuse a tensor that stands in a scripted module too: its place there cannot read late."""
    known = {id(slot.tensor): slot.address for slot in slots}
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            for name, tensor in (*module.named_parameters(path), *module.named_buffers(path)):
                if id(tensor) in known:
                    raise KindError(
                        f"'{show_address(known[id(tensor)])}' is shared with a scripted module, which cannot be tied.",
                        found=f"the same tensor at '{name}', in a {type(module).__name__}",
                        expected="modules of Python code",
                        fix="adopt the model before a part of it is scripted",
                    )


def shared(slots: Iterable[Slot]) -> Iterator[Tie]:
    """Yield a tie for every further slot of one tensor object."""
    first: dict[int, Slot] = {}
    owners: set[tuple[int, str]] = set()
    for slot in slots:
        place = (id(slot.owner), slot.name)
        source = first.setdefault(id(slot.tensor), slot)
        if source is not slot and place not in owners:  # one module under two names is one slot
            yield Tie(slot.address, Ref(source.address))
        owners.add(place)


def _over_one_memory(slots: list[Slot]) -> Iterator[Tie]:
    """Yield a tie for every Parameter whose memory is that of an earlier one, or of a larger one."""
    seen: dict[int, list[Slot]] = {}
    found: dict[Address, Tie] = {}
    for slot in sorted(slots, key=lambda slot: -slot.tensor.numel()):
        tensor = slot.tensor
        if tensor.device.type == "meta" or not tensor.numel():
            continue
        others = seen.setdefault(tensor.untyped_storage().data_ptr(), [])
        source = next((o for o in others if tensor is not o.tensor and _overlap(tensor, o.tensor)), None)
        if source is None:
            others.append(slot)
        else:
            found[slot.address] = Tie(slot.address, _as_view(slot, source))
    yield from (found[slot.address] for slot in slots if slot.address in found)


def _overlap(first: Tensor, second: Tensor) -> bool:
    return _start(first) < _end(second) and _start(second) < _end(first)


def _start(tensor: Tensor) -> int:
    return tensor.data_ptr()


def _end(tensor: Tensor) -> int:
    steps = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr() + (steps + 1) * tensor.element_size()


def _as_view(target: Slot, source: Slot) -> Expression:
    """Return the transform of `source` that is the memory of `target`, entry for entry."""
    found = relation(source.tensor.detach(), target.tensor.detach())
    if found == IDENTITY:
        return Ref(source.address)
    if found != OVERLAP:
        return parse(show_address(source.address) + found)
    here, there = target.tensor, source.tensor
    raise ConflictError(
        f"'{show_address(target.address)}' and '{show_address(source.address)}' overlap in memory in an odd way.",
        found=f"shapes {tuple(here.shape)} and {tuple(there.shape)}, strides {here.stride()} and {there.stride()}",
        expected="the same tensor, or a view of it that a transform says",
        fix="give one of them memory of its own: p.data = p.data.clone()",
    )


def _equal(slots: list[Slot]) -> Iterator[Tie]:
    """Yield a tie for every Parameter with the values of an earlier one, as they are or transposed."""
    seen: dict[tuple[int, torch.dtype, torch.device], list[Slot]] = {}
    for slot in slots:
        tensor = slot.tensor.detach()
        if tensor.device.type == "meta" or tensor.numel() < 2 or bool((tensor == tensor.flatten()[0]).all()):
            continue
        bucket = seen.setdefault((tensor.numel(), tensor.dtype, tensor.device), [])
        found = next((e for source in bucket if (e := _copy_of(tensor, source)) is not None), None)
        if found is None:
            bucket.append(slot)
        else:
            yield Tie(slot.address, found)


def _copy_of(tensor: Tensor, source: Slot) -> Expression | None:
    other = source.tensor.detach()
    if tensor.shape == other.shape and torch.equal(tensor, other):
        return Ref(source.address)
    if tensor.dim() == 2 and tensor.shape == other.mT.shape and torch.equal(tensor, other.mT):
        return Ref(source.address).T
    return None


def alias(model: nn.Module) -> tuple[Tie, ...]:
    """Turn identity ties into plain shared Parameters: one Parameter in two slots, for tools that insist on it.

    Plain sharing has both names in `state_dict()` and is found by transformers' and Lightning's finders, but
    `load_state_dict(assign=True)`, `to_empty`, pruning and norms cut it in silence. `adopt` is the way back.
    Ties with a transform stay as they are: plain torch cannot say them.

    Args:
        model: Changed in place.

    Returns:
        The ties that became plain sharing.

    Example:
        >>> from tied import tie
        >>> model = nn.ModuleDict({"embed": nn.Embedding(7, 3), "head": nn.Linear(3, 7, bias=False)})
        >>> _ = tie(model, "head.weight", "embed.weight")
        >>> alias(model)
        (Tie('head.weight = embed.weight'),)
        >>> list(model.state_dict())
        ['embed.weight', 'head.weight']
        >>> adopt(model)
        (Tie('head.weight = embed.weight'),)
    """
    with during("alias(model)"):
        exported = [
            (tie, module, link) for tie, module, link in entries(unwrapped(model)) if isinstance(tie.source, Ref)
        ]
        plain = [entry for entry in exported if _is_plain(read(entry[1], entry[0].address[-1], entry[2]))]
        with Transaction(on_the_way(unwrapped(model), (tie for tie, _, _ in plain))):
            for tie, module, link in plain:
                link.forget()
                uninstall(module, tie.address[-1], read(module, tie.address[-1], link))
        return tuple(tie for tie, _, _ in plain)


def _is_plain(tensor: Tensor) -> bool:
    return isinstance(tensor, Parameter) or not tensor.requires_grad
