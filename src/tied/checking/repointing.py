"""Repointing: functions in a copy that reach the model from outside are made to reach the copy.

Owns: what functions enclose, and copies of functions. Must not know what the functions are for. Read next: `twin.py`.

`copy.deepcopy` takes a function as it is: a hook that reaches its model by a closure, a default or a global would look
at, and write to, the original. Bound methods and `functools.partial` are copied by `copy.deepcopy` itself.
"""

from __future__ import annotations

import copy
import gc
import random
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

STATE = (nn.Module, Tensor, torch.Generator, random.Random, np.random.Generator, np.random.RandomState)
MUTABLE = (dict, list, set, deque)
CONTAINERS = (*MUTABLE, tuple, partial, MethodType)
MOST_REACHED = 1_000_000  # objects that are looked at on the way from a model to what its functions hold


def reached(value: object) -> Iterator[Any]:
    """Yield what a value is made of, itself first: attributes, items, closures and hooks of tensors, not classes."""
    waiting, seen = deque([value]), {id(value)}
    while waiting and len(seen) < MOST_REACHED:
        found = waiting.popleft()
        yield found
        for part in _parts(found):
            if id(part) not in seen and not isinstance(part, str | int | float | type | ModuleType | CodeType):
                seen.add(id(part))
                waiting.append(part)


def _parts(value: object) -> Iterable[Any]:
    if isinstance(value, FunctionType):
        return (*_enclosed(value), *(each for _, each in _named(value)))
    if isinstance(value, Tensor):
        return (*vars(value).values(), *hooks_of(value), *hooks_of(value, after=True))
    return gc.get_referents(value)


def hooks_of(tensor: Tensor, *, after: bool = False) -> tuple[Any, ...]:
    """Return what runs with a tensor's gradient, or after that was accumulated."""
    hooks = getattr(tensor, "_post_accumulate_grad_hooks" if after else "_backward_hooks", None)
    return tuple((hooks or {}).values())


def _enclosed(function: FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # an empty cell
            yield cell.cell_contents
    yield from (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values(), *vars(function).values())


def _named(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield the globals that a function names: state, and functions of the same file."""
    waiting = [function.__code__]
    while waiting:
        code = waiting.pop()
        waiting += [each for each in code.co_consts if isinstance(each, CodeType)]
        for name in code.co_names:
            value = function.__globals__.get(name)
            if isinstance(value, (*STATE, *CONTAINERS)) or (
                isinstance(value, FunctionType) and value.__globals__ is function.__globals__
            ):
                yield name, value


class Repointing:
    """Makes the functions in a copy reach the copy, where they reached what was copied.

    Attributes:
        memo: That of `copy.deepcopy`: the copies, by the identity of what they are copies of.
    """

    def __init__(self, memo: dict[int, Any], functions: Iterable[FunctionType]) -> None:
        """Replace in every copy made so far the functions that the originals held."""
        self.memo = memo
        self._known = {id(function): function for function in functions}
        self._new: dict[int, FunctionType] = {}
        self._cells: dict[int, CellType] = {}
        self._scopes: dict[int, dict[str, Any]] = {}
        if self._known:
            self._replace_in(memo, id(memo))

    def __call__(self, value: Any) -> Any:
        """Return what shall stand where a copied function, or a hook of a copied tensor, held `value`."""
        if id(value) in self.memo:
            return self._replaced(self.memo[id(value)])
        if isinstance(value, (*STATE, *CONTAINERS)) or (not _is_plain(value) and self._reaches_a_copied(value)):
            return self._copied(value)
        return self._replaced(value)

    def _copied(self, value: Any) -> Any:
        """Copy what a function holds; what cannot be copied (locks, files) it goes on holding."""
        attempt = dict(self.memo)
        try:
            copied = copy.deepcopy(value, attempt)
        except Exception:  # whatever a foreign object raises
            return value
        fresh = {key: each for key, each in attempt.items() if key not in self.memo}
        self.memo |= fresh
        self._replace_in(fresh, id(attempt))
        return self._replaced(copied)

    def _reaches_a_copied(self, value: object) -> bool:
        return any(id(part) in self.memo for part in reached(value))

    def _replace_in(self, copies: Mapping[int, Any], keeps_alive: int) -> None:
        for key, copied in list(copies.items()):
            if key == keeps_alive:
                continue  # there `copy.deepcopy` keeps originals alive
            if isinstance(copied, list):
                copied[:] = map(self._replaced, copied)
                continue
            items = copied if isinstance(copied, dict) else getattr(copied, "__dict__", {})
            for name, value in list(items.items()):
                new = self._replaced(value)
                if new is not value:
                    items[name] = new

    def _replaced(self, value: Any) -> Any:
        """Return what stands for a part of a copy: itself, unless it is a function, or holds one and cannot change."""
        if isinstance(value, FunctionType):
            return self._function(value) if id(value) in self._known else value
        if isinstance(value, MethodType):
            inner = self._replaced(value.__func__)
            return value if inner is value.__func__ else MethodType(inner, value.__self__)
        if type(value) is tuple:
            items = tuple(map(self._replaced, value))
            return items if any(map(_differ, items, value)) else value
        if type(value) is partial:
            inner, args = self._replaced(value.func), self._replaced(value.args)
            keywords = {name: self._replaced(item) for name, item in value.keywords.items()}
            new = partial(inner, *args, **keywords)
            new.__dict__.update(value.__dict__)
            return new
        return value

    # -- functions ----------------------------------------------------------------------------------

    def _function(self, old: FunctionType) -> FunctionType:
        """Return a function over copies of what `old` holds; `old` itself where it holds nothing that was copied."""
        if id(old) in self._new:
            return self._new[id(old)]
        closure = old.__closure__ or ()
        cells = tuple(self._cells.setdefault(id(cell), CellType()) for cell in closure)
        scope = self._scope(old) if any(_named(old)) else old.__globals__
        self._new[id(old)] = new = self._over(old, scope, cells)  # what leads back to it finds it
        changed = [self._fill(copied, cell) for copied, cell in zip(cells, closure, strict=True)]
        defaults, named = old.__defaults__ or (), old.__kwdefaults__ or {}
        new.__defaults__ = tuple(map(self, defaults)) or None
        new.__kwdefaults__ = {name: self(value) for name, value in named.items()} or None
        changed += map(_differ, new.__defaults__ or (), defaults)
        changed += map(_differ, (new.__kwdefaults__ or {}).values(), named.values())
        if scope is old.__globals__:
            self._new[id(old)] = new if any(changed) else old
        elif not self._repoint_globals(old):
            over = self._over(old, old.__globals__, cells)
            over.__defaults__, over.__kwdefaults__ = new.__defaults__, new.__kwdefaults__
            self._new[id(old)] = over if any(changed) else old
        return self._new[id(old)]

    def _over(self, old: FunctionType, scope: dict[str, Any], cells: tuple[CellType, ...]) -> FunctionType:
        new = FunctionType(old.__code__, scope, old.__name__, old.__defaults__, cells or None)
        new.__dict__.update(old.__dict__)
        new.__qualname__, new.__module__ = old.__qualname__, old.__module__
        return new

    def _scope(self, function: FunctionType) -> dict[str, Any]:
        return self._scopes.setdefault(id(function.__globals__), dict(function.__globals__))

    def _fill(self, copied: CellType, cell: CellType) -> bool:
        """Give the copy of a cell what it shall hold; tell whether that is another thing."""
        with suppress(ValueError):  # an empty cell stays empty
            found = cell.cell_contents
            with suppress(ValueError):
                return _differ(copied.cell_contents, found)  # filled for another function
            copied.cell_contents = found  # what leads back to the cell finds something
            copied.cell_contents = self(found)
            return _differ(copied.cell_contents, found)
        return False

    def _repoint_globals(self, function: FunctionType) -> bool:
        """Have the globals that a function names lead to copies; tell whether any does."""
        scope, changed = self._scope(function), False
        for name, value in _named(function):
            is_ours = isinstance(value, (FunctionType, *MUTABLE)) or id(value) in self.memo
            is_ours = is_ours or self._reaches_a_copied(value)
            scope[name] = self(value) if is_ours else value
            changed |= scope[name] is not value
        return changed


def _differ(one: object, other: object) -> bool:
    return one is not other


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, str | int | float | type | ModuleType | FunctionType)
