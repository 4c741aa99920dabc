"""What a tied model does with a state dict that names tied targets.

Owns: the reconciliation of target keys with source keys, before torch loads. Must not open files.
Read next: `tie.py`.

A state dict of a tied model has no key for a target that is read late. One from elsewhere may: then the key is dropped
where it agrees with the source, turned into the source where the source is missing, and refused where they differ.
A live target has a key, as in plain torch; what it is given to load is what it holds, since its source loads for both.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Generator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tied.algebra import Address, Expression, invert, project, ref
from tied.algebra.projection import agree
from tied.binding.link import Link
from tied.binding.live.live_slots import Live, live_slots
from tied.errors import ConflictError, InverseError, ShapeError, TieError
from tied.ledger import Tie, entries

State = MutableMapping[str, Any]


def attend(home: nn.Module) -> None:
    """Have `home` reconcile state dicts before it loads them."""
    _hook(home, reconcile_before)


def attend_target(module: nn.Module) -> None:
    """Have a module with live slots load what concerns it alone."""
    _hook(module, load_live)


def name_once(model: nn.Module) -> None:
    """Have the state dict of `model` name each identity once, under its source, for tools that write it themselves."""
    if leave_out not in model._state_dict_hooks.values():
        model._register_state_dict_hook(leave_out)


def leave_out(module: nn.Module, state_dict: State, prefix: str, metadata: Any) -> None:
    """Take the names of live targets out of a state dict that has their sources; a hook of torch's `state_dict`."""
    for tie, _, link in entries(module):
        if link.is_live and all(_key(prefix, address) in state_dict for address in tie.source.sources()):
            state_dict.pop(prefix + tie.target, None)


def _hook(module: nn.Module, wanted: Callable[..., None]) -> None:
    hooks: Any = module._load_state_dict_pre_hooks
    if not any(getattr(hook, "hook", None) is wanted for hook in hooks.values()):
        module.register_load_state_dict_pre_hook(wanted)
    for key in [key for key, hook in hooks.items() if getattr(hook, "hook", None) is load_live]:
        hooks.move_to_end(key)  # what concerns a home comes first


def reconcile_before(
    module: nn.Module, state_dict: State, prefix: str, metadata: Any, strict: bool, missing: list[str], *_: Any
) -> None:
    """Reconcile the keys of every target whose home lies in `module`; a hook of torch's `load_state_dict`."""
    with _begun(prefix):
        found = [(tie, link) for tie, owner, link in entries(module) if link.is_live and _is_in_accord(owner, tie)]
        given = [tie for tie, _ in found if _key(prefix, tie.address) in state_dict]
        sources = dict.fromkeys(_key(prefix, address) for tie in given for address in tie.source.sources())
        lone = [key for key in sources if key not in state_dict]
        reconcile_all(module, state_dict, prefix, keep=None)
        for tie, link in found:  # one name is enough where the source is loaded too
            if _key(prefix, tie.address) not in state_dict:
                lone.append(_key(prefix, tie.address))
                _settle(state_dict, lone[-1], link)
        if lone and leave_out not in module._state_dict_hooks.values() and _is_lenient():
            missing.extend(lone)


def load_live(
    module: nn.Module, state_dict: State, prefix: str, metadata: Any, strict: bool, missing: list[str], *_: Any
) -> None:
    """Have each live slot load what it holds, where its source loads for both; a hook of torch's `load_state_dict`."""
    for slots in (module.__dict__["_parameters"], module.__dict__["_buffers"]):
        for name, link in tuple(slots.links.items()) if isinstance(slots, Live) else ():
            key = prefix + name
            if not slots.is_in_accord(name):
                _load_apart(link, state_dict, key, name)
            elif key not in state_dict:
                _load_without_name(link, state_dict, key, slots[name], missing)
            elif _is_settled(link, state_dict[key]):
                state_dict[key] = slots[name]
            elif (metadata or {}).get("assign_to_params_buffers", False):
                _assign(state_dict, key, slots[name])


def _load_apart(link: Link, state: State, key: str, name: str) -> None:
    """Load into a slot that has a value of its own, as torch does; or one that is read late by now."""
    if not link.is_live and key in state:
        state.update(load_alone(link, state.pop(key), key.removesuffix(name), name))


def _load_without_name(link: Link, state: State, key: str, present: Any, missing: list[str]) -> None:
    """Leave to torch that a name is missing, unless no home tells whether the source is loaded beside it."""
    if link.home is None:
        state[key] = present
        if _is_lenient():
            missing.append(key)


def _assign(state: State, key: str, present: Any) -> None:
    """Put a value into the tensor that a slot shares, where torch would put another tensor into the slot alone."""
    value = state[key]
    if value is not present and isinstance(value, Tensor) and value.shape == present.shape and not present.is_meta:
        present.detach().copy_(value)
        state[key] = present


def _is_in_accord(module: nn.Module, tie: Tie) -> bool:
    slots: Any = live_slots(module, tie.address[-1])
    return slots is not None and slots.is_in_accord(tie.address[-1])


def _is_lenient() -> bool:
    """Tell whether torch's `load_state_dict`, which is under way, was called with `strict=False`.

    Hooks are not told. A lenient load reports the missing name of a tied tensor, which safetensors' `load_model`
    looks for; a strict one takes one name for both.
    """
    frame = sys._getframe(1)
    while frame is not None and frame.f_code is not nn.Module.load_state_dict.__code__:
        frame = frame.f_back
    return frame is not None and frame.f_locals.get("strict") is False


def _settle(state: State, key: str, link: Link) -> None:
    """Take the key of a target out of `state`; a live one loads what it holds."""
    module, name = link.target(), key.rpartition(".")[2]
    slots: Any = live_slots(module, name) if module is not None else None
    if slots is not None and slots.is_in_accord(name):
        state[key] = token = slots[name].detach()
        link.settled = weakref.ref(token)
    elif slots is None:
        del state[key]


def _is_settled(link: Link, value: Any) -> bool:
    """Tell whether a key was reconciled before, by `_settle`."""
    return link.settled is not None and link.settled() is value


@contextmanager
def _begun(prefix: str) -> Generator[None]:
    """Say in errors that torch loads parent modules before their children."""
    try:
        yield
    except TieError as error:
        error.changed = "The model was changed in part: torch had loaded what comes before this." if prefix else ""
        raise


def reconcile_all(module: nn.Module, state: State, prefix: str, *, keep: str | None) -> None:
    """Reconcile the keys of every tie whose two ends lie in `module`, each of which has the prefix."""
    found = [(tie, link) for tie, _, link in entries(module)]
    asked = {_key(prefix, tie.address): state.get(_key(prefix, tie.address)) for tie, _ in found}
    if keep == "mean":
        for group in _connected(found):
            _project_together(state, prefix, group)
    for tie, link in found:
        reconcile(state, prefix, tie, link, keep=keep)
    if keep == "target":
        _refuse_rivals(state, prefix, [tie for tie, _ in found], asked)


def _key(prefix: str, address: Address) -> str:
    return prefix + ".".join(address)


def _connected(found: list[tuple[Tie, Link]]) -> list[list[tuple[Tie, Link]]]:
    """Return the ties in groups that have no source in common, constants aside."""
    groups: list[tuple[set[Address], list[tuple[Tie, Link]]]] = []
    for tie, link in found:
        fixed = link.fixed()
        near = zip(tie.source.sources(), link.expression.sources(), strict=True)
        sources, members = {far for far, address in near if address not in fixed}, [(tie, link)]
        for group in [group for group in groups if group[0] & sources]:
            groups.remove(group)
            sources, members = group[0] | sources, group[1] + members
        groups.append((sources, members))
    return [members for _, members in groups]


def _project_together(state: State, prefix: str, ties: list[tuple[Tie, Link]]) -> None:
    """Give sources that several targets of a state dict read the least-squares value over all of them."""
    ties = [(tie, link) for tie, link in ties if isinstance(state.get(_key(prefix, tie.address)), Tensor)]
    if len(ties) < 2:
        return
    uses, given, present = list[tuple[Expression, Tensor]](), dict[Address, Tensor](), dict[Address, Tensor]()
    fixed: set[Address] = set()
    for tie, link in ties:
        value, now, constant = state[_key(prefix, tie.address)], link.tensors(), link.fixed()
        for far, near in zip(tie.source.sources(), link.expression.sources(), strict=True):
            if _key(prefix, far) in state:
                given[far] = state[_key(prefix, far)].to(value.device)
            present[far] = given.get(far, _present(now[near], value.device))
            fixed |= {far} if near in constant else set()
        if not _fits(tie.source, present, value):
            return  # torch words mismatched shapes itself
        uses.append((tie.source, value))
    if not all(agree(expression.value(present), value, expression) for expression, value in uses):
        uses += [(ref(address), tensor) for address, tensor in given.items() if address not in fixed]
        state.update({_key(prefix, a): tensor for a, tensor in project(uses, present, fixed).items()})
        for tie, link in ties:
            _settle(state, _key(prefix, tie.address), link)


def _refuse_rivals(state: State, prefix: str, ties: list[Tie], asked: Mapping[str, Any]) -> None:
    """Refuse targets that ask for different values of one source: the last one would have won."""
    for tie in ties:
        value = asked[_key(prefix, tie.address)]
        keys = {address: _key(prefix, address) for address in tie.source.sources()}
        if not isinstance(value, Tensor) or not all(key in state for key in keys.values()):
            continue
        tensors = {address: state[key].to(value.device) for address, key in keys.items()}
        if _fits(tie.source, tensors, value) and not agree(tie.source.value(tensors), value, tie.source):
            raise ConflictError(
                "The targets in this state dict ask for different values of one source.",
                found=f"no source keeps '{_key(prefix, tie.address)}' as it is",
                expected="targets that agree",
                fix="keep='mean' for the least-squares source, or keep='source'",
            )


def reconcile(state: State, prefix: str, tie: Tie, link: Link, *, keep: str | None) -> None:
    """Take the key of one target out of `state`, and bring its sources there in accord with it.

    Raises:
        ConflictError: target and sources differ, and `keep` names no winner.
        InverseError: the sources are missing, and none give the target's value.
    """
    key = prefix + tie.target
    value = state.get(key)
    if not isinstance(value, Tensor) or _is_settled(link, value):
        return
    keys = _source_keys(prefix, tie, link)
    given = {address: state[name].to(value.device) for address, name in keys.items() if name in state}
    present = {a: _present(t, value.device) for a, t in link.tensors().items()} | given
    fixed = link.fixed()
    if not _fits(link.expression, present, value):
        return  # torch words mismatched shapes itself
    missing = keys.keys() - given.keys() - fixed
    if missing and keep is None and agree(link.expression.value(present), value, link.expression):
        state.update({keys[address]: present[address] for address in missing})
    elif missing or keep == "target":
        found = invert(link.expression, value, present, fixed | (set() if keep else set(given)))
        _refuse_gaps(key, found, value)
        state.update({keys[address]: found[address] for address in found if keep or address in missing})
    elif keep == "mean":
        uses = [(link.expression, value), *((ref(a), given[a]) for a in given if a not in fixed)]
        state.update({keys[address]: tensor for address, tensor in project(uses, present, fixed).items()})
    elif keep is None and not agree(link.expression.value(present), value, link.expression):
        raise _conflict(key, [keys[a] for a in given], link.expression)
    _settle(state, key, link)


def _source_keys(prefix: str, tie: Tie, link: Link) -> dict[Address, str]:
    """Return the state-dict names of the sources, by their addresses in the link."""
    pairs = zip(link.expression.sources(), tie.source.sources(), strict=True)
    return {near: prefix + ".".join(far) for near, far in pairs}


def _present(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a source's value; what is on the meta device has none yet."""
    if tensor.device.type != "meta":
        return tensor.detach().to(device)
    unknown = float("nan") if tensor.is_floating_point() else 0
    return torch.full(tensor.shape, unknown, dtype=tensor.dtype, device=device)


def _refuse_gaps(key: str, found: dict[Address, Tensor], value: Tensor) -> None:
    if any(bool(t.isnan().any()) for t in found.values()) and not value.isnan().any():
        raise InverseError(
            f"'{key}' does not give all of its source, and the model is on the meta device.",
            found="entries of the source that the target never reads",
            expected="the source itself in the state dict",
            fix="materialize the model first, or add the source's key",
        )


def _fits(expression: Expression, tensors: dict[Address, Tensor], value: Tensor) -> bool:
    try:
        metas = {address: tensor.to("meta") for address, tensor in tensors.items()}
        return expression.infer(metas).shape == value.shape
    except ShapeError:
        return False


def _source_on_meta(key: str, expression: Expression) -> ConflictError:
    return ConflictError(
        f"'{key}' is tied to {expression}, which is on the meta device and is not being loaded.",
        found="a source without memory",
        expected="a load of the model that holds both",
        fix="load the whole model, or materialize it first: model.to_empty(device='cpu')",
    )


def _conflict(key: str, sources: list[str], expression: Expression) -> ConflictError:
    return ConflictError(
        f"'{key}' and its source differ in this state dict, but the model has one tensor for both.",
        found=f"'{key}' is not {expression} of {' and '.join(map(repr, sources))}",
        expected="equal values, or only one of the keys",
        fix="name the winner: tied.load_state_dict(model, state, keep='source'), 'target' or 'mean'",
    )


def check_winner(keep: object, names: tuple[str, ...] = ("source", "target", "mean")) -> None:
    """Refuse a `keep` that names no winner.

    Raises:
        ConflictError: it does not.
    """
    if keep is not None and keep not in names:
        raise ConflictError(
            "keep names no winner.", found=repr(keep), expected=", ".join(map(repr, names)), fix="keep='source'"
        )


def load_alone(link: Link, value: Tensor, prefix: str, name: str) -> dict[str, Tensor]:
    """Load a target's key where its home is not being loaded: into the sources, or not at all.

    Returns:
        Nothing to load further: an empty dict.

    Raises:
        ConflictError: the load covers more than the target, so that its source may be loaded too.
        InverseError: no source gives the value.
    """
    with _begun(prefix), torch.no_grad():
        present = link.read()
        if present.device.type == "meta":
            raise _source_on_meta(prefix + name, link.expression)
        value = value.to(present.device)
        if present.shape != value.shape:
            return {prefix + name: value}  # torch words mismatched shapes itself
        if agree(present, value, link.expression):
            return {}
        if prefix:
            raise ConflictError(
                f"'{prefix}{name}' is tied to {link.expression}, and this load does not know the two together.",
                found="a value that differs from the source's present one",
                expected="a load of the model on which the tie was declared",
                fix="load that model, leave the key out, or call tied.untie(model, target) first",
            )
        link.write(value)
    return {}
