"""What a tied model does with a state dict that names tied targets.

Owns: the reconciliation of target keys with source keys, before torch loads. Must not open files.
Read next: `declare.py`.

A state dict of a tied model has no key for a target. One from elsewhere may: then the key is dropped where
it agrees with the source, turned into the source where the source is missing, and refused where they differ.
"""

from __future__ import annotations

from collections.abc import Generator, MutableMapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tied.algebra import Address, Expression, invert, project, ref
from tied.algebra.projection import agree
from tied.binding.ledger import Tie, entries
from tied.binding.link import Link
from tied.errors import ConflictError, InverseError, ShapeError, TieError

State = MutableMapping[str, Any]


def attend(home: nn.Module) -> None:
    """Have `home` reconcile state dicts before it loads them."""
    if not any(getattr(hook, "hook", None) is reconcile_before for hook in home._load_state_dict_pre_hooks.values()):
        home.register_load_state_dict_pre_hook(reconcile_before)


def reconcile_before(module: nn.Module, state_dict: State, prefix: str, *_: Any) -> None:
    """Reconcile the keys of every target whose home lies in `module`; a hook of torch's `load_state_dict`."""
    with _begun(prefix):
        reconcile_all(module, state_dict, prefix, keep=None)


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
    for tie, _, link in entries(module):
        reconcile(state, prefix, tie, link, keep=keep)


def reconcile(state: State, prefix: str, tie: Tie, link: Link, *, keep: str | None) -> None:
    """Take the key of one target out of `state`, and bring its sources there in accord with it.

    Raises:
        ConflictError: target and sources differ, and `keep` names no winner.
        InverseError: the sources are missing, and none give the target's value.
    """
    key = prefix + ".".join(tie.target)
    value = state.get(key)
    if not isinstance(value, Tensor):
        return
    keys = _source_keys(prefix, tie, link)
    given = {address: state[name].to(value.device) for address, name in keys.items() if name in state}
    present = {a: _present(t, value.device) for a, t in link.tensors().items()} | given
    fixed = link.fixed()
    if not _fits(link.expression, present, value):
        return  # torch words mismatched shapes itself
    missing = keys.keys() - given.keys() - fixed
    if missing or keep == "target":
        found = invert(link.expression, value, present, fixed | (set() if keep else set(given)))
        _refuse_gaps(key, found, value)
        state.update({keys[address]: found[address] for address in found if keep or address in missing})
    elif keep == "mean":
        uses = [(link.expression, value), *((ref(a), given[a]) for a in given if a not in fixed)]
        state.update({keys[address]: tensor for address, tensor in project(uses, present, fixed).items()})
    elif keep is None and not agree(link.expression.value(present), value, link.expression):
        raise _conflict(key, [keys[a] for a in given], link.expression)
    del state[key]


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
