"""The tensors of what was loaded, under the names of their state dict; and what lies beside them.

Owns: the names. Must not open files, nor make tensors. Read next: `pt_file.py`.

Only what holds a tensor is gone through by name; the rest, however large, is looked at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from tied.files.reading.inert import External, Inert, Key, Named, Rebuilt, key_text
from tied.files.reading.refusal import RESAVE, refuse, shown

MOST_NODES = 200_000
MOST_LEAVES = 2_000_000
MOST_LETTERS = 1 << 25
MOST_DEPTH = 32
MOST_INERT = 1000


@dataclass(frozen=True)
class Contents:
    """What was loaded, taken apart.

    Attributes:
        tensors: Every tensor, or what is to become one, by its keys and positions joined with dots.
        beside: What holds no tensor, by name: the outermost of each.
        training: The names of what belongs to the training, not to the model: states of optimizers, and of a
            Lightning checkpoint all but its state dict.
    """

    tensors: dict[str, Tensor | Rebuilt] = field(default_factory=dict)
    beside: dict[str, Any] = field(default_factory=dict)
    training: list[str] = field(default_factory=list)


def contents(loaded: Any, path: Path) -> Contents:
    """Take apart nested dicts, lists, tuples, and objects that were not made.

    What holds itself is gone through once.

    Raises:
        FileError: There is no end to it, or two tensors have one name.
    """
    found, holders = Contents(), _holders(loaded)
    nodes, leaves, letters = MOST_NODES, MOST_LEAVES, MOST_LETTERS
    stack: list[tuple[str, Any, _Way]] = [("", loaded, ())]
    while stack:
        name, value, way = stack.pop()
        is_tensor = isinstance(value, Tensor | Rebuilt)
        if not is_tensor and id(value) not in holders:
            found.beside[name] = value
            continue
        if is_tensor:
            _add(found, name, value, path)
        inner = [] if is_tensor else list(_inner(value))
        nodes, leaves, letters = nodes - 1, leaves - len(inner), letters - len(name)
        if len(way) > MOST_DEPTH or min(nodes, leaves, letters) < 0:
            said, expected = f"{shown(name)}, {len(way)} levels deep", f"{MOST_DEPTH} levels, {MOST_NODES} names"
            refuse(path, "It is nested without end.", said, expected, RESAVE)
        below = (*way, id(value))
        found.training.extend(_of_training(name, value) if not is_tensor else ())
        inner = [(key, one) for key, one in inner if id(one) not in below]
        stack += [(f"{name}.{key}" if name else key, one, below) for key, one in reversed(inner)]
    return found


_Way = tuple[int, ...]
OF_OPTIMIZERS = re.compile(r"optim(izer)?s?(_states?)?(_dicts?)?", re.IGNORECASE)
LIGHTNING, ITS_WEIGHTS = "pytorch-lightning_version", "state_dict"


def _of_training(name: str, value: Any) -> Iterator[str]:
    """Yield the names below which lies state of the training."""
    inside = cast(Mapping[Any, Any], value) if isinstance(value, Mapping) else {}
    is_torchs = isinstance(inside.get("state"), Mapping) and isinstance(inside.get("param_groups"), list)
    if is_torchs or OF_OPTIMIZERS.fullmatch(name.rpartition(".")[2]):
        yield name
    if not name and LIGHTNING in inside and ITS_WEIGHTS in inside:
        yield from (key for key in inside if isinstance(key, str) and key != ITS_WEIGHTS)


def _add(found: Contents, name: str, value: Tensor | Rebuilt, path: Path) -> None:
    if name in found.tensors:
        refuse(path, "Two tensors have one name.", shown(name), "a name for each", RESAVE)
    if not name.isascii() and any("\ud800" <= letter <= "\udfff" for letter in name):
        refuse(path, "A name is no text.", shown(name), "one that can be written", RESAVE)
    found.tensors[name] = value


def _inner(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what lies in a container, by the text of its key or its position."""
    if isinstance(value, Mapping):
        for at, (key, one) in enumerate(cast(Mapping[Any, Any], value).items()):
            text = key_text(key) if isinstance(key, Key | Inert | Named) else str(key)
            yield text or (str(at) if isinstance(key, Key | Inert | Named) else ""), one
    elif isinstance(value, list | tuple):
        for at, one in enumerate(cast(list[Any], value)):
            yield str(at), one


_ENDS = (str, bytes, int, float, bool, type(None), Named, External)


def _values(value: Any) -> Iterable[Any]:
    if isinstance(value, Inert) and not (value.args or value.listed or value.keyed or value.state):
        return ()
    return cast(Mapping[Any, Any], value).values() if isinstance(value, dict | Mapping) else cast(list[Any], value)


def _holders(loaded: Any) -> set[int]:
    """Return the identities of the containers that hold tensors, at any depth; each is looked at once."""
    parents: dict[int, list[int]] = {id(loaded): []}
    holds: dict[type, bool] = dict.fromkeys(_ENDS, False)  # asked once of each class, not of each object
    alive, tensors = [loaded], list[int]()
    for value in alive:  # which grows
        this = id(value)
        for one in _values(value) if _is_container(type(value)) else ():
            kind = type(one)
            if kind not in holds:
                holds[kind] = _is_container(kind) or issubclass(kind, Tensor | Rebuilt)
            if not holds[kind]:
                continue
            place = id(one)
            if place in parents:
                parents[place].append(this)
            elif _is_container(kind):
                parents[place] = [this]
                alive.append(one)
            else:
                tensors.append(this)
    found: set[int] = set()
    while tensors:
        at = tensors.pop()
        if at not in found:
            found.add(at)
            tensors += parents[at]
    return found


def _is_container(kind: type) -> bool:
    if kind in (list, tuple, dict, Inert):
        return True
    return issubclass(kind, list | tuple | Mapping) and kind is not Rebuilt


def inert_in(beside: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the name and the kind of every object that was not made: of nested ones the outermost, some at most."""
    known: set[int] = set()
    stack: list[tuple[str, Any]] = list(reversed([*beside.items()]))
    for _ in range(MOST_INERT):
        if not stack:
            return
        name, value = stack.pop()
        if isinstance(value, Inert | Named):
            yield name, value.kind
        elif isinstance(value, Mapping | list | tuple) and id(cast(Any, value)) not in known:
            known.add(id(cast(Any, value)))
            inner = [(key, one) for key, one in _inner(value) if isinstance(one, Named | Mapping | list | tuple)]
            stack += [(f"{name}.{key}" if name else key, one) for key, one in reversed(inner)]
