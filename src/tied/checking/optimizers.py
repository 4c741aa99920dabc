"""Optimizers: whether each shared weight is stepped once, with one setting.

Owns: the findings TIE401 to TIE405. Must not change the optimizer. Read next: `check.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from inspect import signature
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from tied.checking.declarations import Seen, fix_of_half_tied
from tied.reporting.facts import Finding, Group
from tied.reporting.rules import finding

SETTINGS = ("lr", "weight_decay")


class Entry(NamedTuple):
    """One Parameter in one parameter group of an optimizer."""

    tensor: Tensor
    number: int
    settings: tuple[Any, ...]


def look_at_optimizer(seen: Seen, optimizer: Optimizer) -> Iterator[Finding]:
    """Yield what is wrong between a model's sharing and its optimizer."""
    entries = [
        Entry(tensor, number, tuple(_plain(group.get(setting)) for setting in SETTINGS))
        for number, group in enumerate(optimizer.param_groups)
        for tensor in group["params"]
    ]
    held: dict[int, list[Entry]] = {}
    for entry in entries:
        held.setdefault(id(entry.tensor), []).append(entry)
    names: dict[int, list[str]] = {}
    for name, tensor in zip(seen.inventory.names, seen.inventory.tensors, strict=True):
        names.setdefault(id(tensor), []).append(name)
    anew = _anew(optimizer)
    yield from _twice(held, names, anew)
    for group in seen.groups:
        yield from _of_group(seen, group, held, anew)
    yield from _stale(seen, [entry.tensor for entry in entries], names, anew)


def _anew(optimizer: Optimizer) -> str:
    """Return a line that makes the optimizer again, with what was set in its first group."""
    known, group = signature(type(optimizer)).parameters, optimizer.param_groups[0]
    changed = {n: v for n in known if n in group and n != "params" and (v := _plain(group[n])) != known[n].default}
    arguments = ["model.parameters()", *(f"{name}={value!r}" for name, value in changed.items())]
    return f"optimizer = type(optimizer)({', '.join(arguments)})"


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) else value


def _twice(held: dict[int, list[Entry]], names: Mapping[int, Sequence[str]], anew: str) -> Iterator[Finding]:
    for key, entries in held.items():
        if len(entries) > 1 and key in names:
            what = f"{names[key][0]} stands {len(entries)} times in the optimizer, and is stepped as often."
            yield finding("TIE401", names[key], what, anew)


def _of_group(seen: Seen, group: Group, held: dict[int, list[Entry]], anew: str) -> Iterator[Finding]:
    """Look at the Parameters over one memory."""
    trained: dict[int, str] = {}
    for name in group.names:
        tensor = seen.inventory.tensor(name)
        if isinstance(tensor, nn.Parameter) and tensor.requires_grad:
            trained.setdefault(id(tensor), name)
    entries = [entry for key in trained for entry in held.get(key, ())]
    names = [name for key, name in trained.items() if key in held]
    if len(names) > 1:
        fix = fix_of_half_tied(seen, group, anew)
        settings = dict.fromkeys(entry.settings for entry in entries)
        if len(settings) > 1:
            shown = " and ".join(_settings(each) for each in settings)
            what = f"{' and '.join(names)} are one memory, which is stepped with {shown}."
            yield finding("TIE403", names, what, fix)
        else:
            what = f"{' and '.join(names)} are one memory in {len(names)} entries: each step counts {len(names)} times."
            yield finding("TIE402", names, what, fix)
    if trained and not names and _holds_any(seen, held):
        first = next(iter(trained.values()))
        what = f"{first} is shared and trainable, and the optimizer does not hold it, though it holds others."
        yield finding("TIE404", group.names, what, anew)


def _settings(settings: tuple[Any, ...]) -> str:
    return ", ".join(f"{name}={value:g}" for name, value in zip(SETTINGS, settings, strict=True) if value is not None)


def _holds_any(seen: Seen, held: dict[int, list[Entry]]) -> bool:
    return any(id(tensor) in held for tensor in seen.inventory.tensors)


def _stale(seen: Seen, tensors: list[Tensor], names: Mapping[int, Sequence[str]], anew: str) -> Iterator[Finding]:
    """Yield Parameters that the model has no more, where one of its shared names lost one of that shape.

    An optimizer may hold other models' Parameters with good reason; so only those count that have the shape
    of a name that shares, and only beside some of this model's.
    """
    if not any(id(tensor) in names for tensor in tensors):
        return
    shapes = {shape: group for group in seen.groups for shape in (group.shape, group.shape[::-1])}
    for tensor in tensors:
        if id(tensor) in names or is_lazy(tensor) or tuple(tensor.shape) not in shapes:
            continue
        group = shapes[tuple(tensor.shape)]
        what = f"The optimizer steps a Parameter of shape {tuple(tensor.shape)} that the model does not have any more,"
        yield finding("TIE405", group.names, f"{what} as after a late tie of {group.names[-1]}.", anew)
