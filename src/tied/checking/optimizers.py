"""Optimizers: whether each shared weight is stepped once, with one setting.

Owns: the findings TIE401 to TIE406. Must not change the optimizer. Read next: `check.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from tied.checking.declarations import Seen, fix_of_half_tied
from tied.errors import KindError
from tied.reporting.facts import Finding, Group, quoted
from tied.reporting.rules import finding

SETTINGS = ("lr", "weight_decay")


class Entry(NamedTuple):
    """One Parameter in one parameter group of an optimizer.

    Attributes:
        tensor: The Parameter.
        optimizer: Which of the optimizers steps it.
        settings: Those of its group.
    """

    tensor: Tensor
    optimizer: int
    settings: tuple[Any, ...]


Held = dict[int, list[Entry]]


def optimizers_of(given: Any) -> tuple[Optimizer, ...]:
    """Return what was given as `optimizer=` as a tuple.

    Raises:
        KindError: something is no optimizer.
    """
    found = () if given is None else (given,) if hasattr(given, "param_groups") else given
    found = tuple(found) if isinstance(found, Iterable) else (found,)
    for each in found:
        if not hasattr(each, "param_groups"):
            raise KindError(
                "What was given as optimizer= is no optimizer.",
                found=type(each).__name__,
                expected="a torch.optim.Optimizer, or a list of them",
                fix="tied.check(model, optimizer=optimizer)",
            )
    return found


def look_at_optimizers(seen: Seen, optimizers: Sequence[Optimizer]) -> Iterator[Finding]:
    """Yield what is wrong between a model's sharing and its optimizers."""
    entries = [
        Entry(tensor, number, tuple(_plain(group.get(setting)) for setting in SETTINGS))
        for number, optimizer in enumerate(optimizers)
        for group in optimizer.param_groups
        for tensor in group["params"]
    ]
    held: Held = {}
    for entry in entries:
        held.setdefault(id(entry.tensor), []).append(entry)
    names: dict[int, list[str]] = {}
    for name, tensor in zip(seen.inventory.names, seen.inventory.tensors, strict=True):
        names.setdefault(id(tensor), []).append(name)
    words = ["optimizer"] if len(optimizers) == 1 else [f"optimizer[{number}]" for number in range(len(optimizers))]
    yield from _twice(held, names, words)
    yield from _by_several(held, names, words)
    for group in seen.groups:
        yield from _of_group(seen, group, held, words[0])
    for word, optimizer in zip(words, optimizers, strict=True):
        yield from _stale(seen, optimizer, names, word)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) else value


def _twice(held: Held, names: Mapping[int, Sequence[str]], words: Sequence[str]) -> Iterator[Finding]:
    for key, entries in held.items():
        for number, count in Counter(entry.optimizer for entry in entries).items():
            if count > 1 and key in names:
                what = f"{names[key][0]} stands {count} times in the optimizer, and is stepped as often."
                fix = f"for g in {words[number]}.param_groups: g['params'] = list(dict.fromkeys(g['params']))"
                yield finding("TIE401", names[key], what, fix)


def _by_several(held: Held, names: Mapping[int, Sequence[str]], words: Sequence[str]) -> Iterator[Finding]:
    """Yield what several optimizers step, folded: one finding for each set of optimizers."""
    found: dict[tuple[int, ...], list[str]] = {}
    for key, entries in held.items():
        numbers = tuple(dict.fromkeys(entry.optimizer for entry in entries))
        if len(numbers) > 1 and key in names:
            found.setdefault(numbers, []).append(names[key][0])
    for numbers, stepped in found.items():
        more = f" and {len(stepped) - 1} more" if len(stepped) > 1 else ""
        what = f"{stepped[0]}{more}: stepped by {len(numbers)} optimizers, {' and '.join(words[n] for n in numbers)}."
        first = f"s = {{p for g in {words[numbers[0]]}.param_groups for p in g['params']}}"
        rest = f"[g['params'].remove(p) for o in optimizer if o is not {words[numbers[0]]} for g in o.param_groups"
        yield finding("TIE406", stepped, what, f"{first}; {rest} for p in [*g['params']] if p in s]")


def _of_group(seen: Seen, group: Group, held: Held, word: str) -> Iterator[Finding]:
    """Look at the Parameters over one memory."""
    trained: dict[int, str] = {}
    for name in group.names:
        tensor = seen.inventory.tensor(name)
        if isinstance(tensor, nn.Parameter) and tensor.requires_grad:
            trained.setdefault(id(tensor), name)
    entries = [entry for key in trained for entry in held.get(key, ())]
    names = [name for key, name in trained.items() if key in held]
    if len(names) > 1:
        fix = fix_of_half_tied(seen, group, optimized=True)
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
        fix = f"{word}.add_param_group({{'params': [model.get_parameter({quoted(first)})]}})"
        yield finding("TIE404", group.names, what, fix)


def _settings(settings: tuple[Any, ...]) -> str:
    return ", ".join(f"{name}={value:g}" for name, value in zip(SETTINGS, settings, strict=True) if value is not None)


def _holds_any(seen: Seen, held: Held) -> bool:
    return any(id(tensor) in held for tensor in seen.inventory.tensors)


def _stale(seen: Seen, optimizer: Optimizer, names: Mapping[int, Sequence[str]], word: str) -> Iterator[Finding]:
    """Yield Parameters that the model has no more, where one of its shared names lost one of that shape.

    An optimizer may hold other models' Parameters with good reason; so only those count that have the shape
    of a name that shares, and only beside some of this model's. The last come first, so that each fix finds its own.
    """
    places = [(n, i, p) for n, group in enumerate(optimizer.param_groups) for i, p in enumerate(group["params"])]
    shapes = {shape: group for group in seen.groups for shape in (group.shape, group.shape[::-1])}
    for number, place, tensor in reversed(places) if any(id(p) in names for *_, p in places) else ():
        if id(tensor) in names or is_lazy(tensor) or tuple(tensor.shape) not in shapes:
            continue
        group = shapes[tuple(tensor.shape)]
        what = f"The optimizer steps a Parameter of shape {tuple(tensor.shape)} that the model does not have any more,"
        fix = f"{word}.state.pop({word}.param_groups[{number}]['params'].pop({place}), None)"
        yield finding("TIE405", group.names, f"{what} as after a late tie of {group.names[-1]}.", fix)
