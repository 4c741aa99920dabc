"""Twins: copies of a model to run, whose forward and hooks write into the copy and never into the model.

Owns: copying a model with Parameters of its own, and turning hooks that reach the model by a closure, a global or a
method to the copy. Must not run anything. Read next: `forward_trace.py`.

`copy.deepcopy` takes functions as they are: a hook `lambda *_: model.b.weight.copy_(model.a.weight)` would go on
writing into the model. Here each such function is made anew over what it reaches: modules, tensors and containers of
the copy.
"""

from __future__ import annotations

import collections
import copy
import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from tied.checking.inventory import walk

CONTAINERS: tuple[type, ...] = (list, dict, set, collections.deque)
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

Memo = dict[int, Any]


def twin_of(model: nn.Module, *, on_meta: bool) -> nn.Module:
    """Copy a model with all that it holds; on meta its Parameters and buffers have no values."""
    memo: Memo = {}
    modules = {id(module): module for _, module in walk(model)}.values()
    for tensor in (tensor for module in modules for tensor in _loose(module.__dict__)):
        memo[id(tensor)] = tensor.detach().clone()  # of a graph, which deepcopy refuses: a cache of the last forward
    if on_meta:
        memo |= {id(p): _on_meta(p) for module in modules for p in module._parameters.values() if p is not None}
    twin = copy.deepcopy(model, memo)
    for _, module in walk(twin):
        redirect(module, memo)
    return twin.to("meta") if on_meta else twin


def _on_meta(parameter: Parameter) -> Parameter:
    return Parameter(torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad)


def _loose(held: Any, depth: int = 3) -> Iterator[Tensor]:
    """Yield the tensors in attributes that are results of a graph."""
    if isinstance(held, Tensor):
        if not held.is_leaf:
            yield held
    elif isinstance(held, (*CONTAINERS, tuple)) and depth:
        for item in held.values() if isinstance(held, dict) else held:
            yield from _loose(item, depth - 1)


def redirect(module: nn.Module, memo: Memo) -> None:
    """Turn the functions that a copied module calls (hooks, and a forward of its own) to the copy."""
    for name in HOOKS:
        hooks: dict[int, Any] = module.__dict__.get(name) or {}
        for key, hook in hooks.items():
            hooks[key] = redirected(hook, memo)
    for name, value in module.__dict__.items():
        if isinstance(value, types.FunctionType):
            module.__dict__[name] = redirected(value, memo)


def redirected(hook: Any, memo: Memo) -> Any:
    """Return a function over the copies of what it reaches; itself where it reaches nothing that was copied."""
    if not isinstance(hook, types.FunctionType):
        return hook  # a method, a partial, or an object with __call__ was copied with what it holds
    if id(hook) in memo:
        return memo[id(hook)]
    reached = inspect.getclosurevars(hook).globals
    changes = {name: value for name, value in reached.items() if _is_copied(value, hook.__globals__)}
    cells = [types.CellType() for _ in hook.__closure__ or ()]
    space = {**hook.__globals__, **dict.fromkeys(changes)} if changes else hook.__globals__
    made = types.FunctionType(hook.__code__, space, hook.__name__, None, tuple(cells) or None)
    made.__dict__.update(hook.__dict__)
    memo[id(hook)] = made
    memo.setdefault(id(memo), []).append(hook)  # as deepcopy does: an id that is known stays taken
    for cell, old in zip(cells, hook.__closure__ or (), strict=True):
        if old != types.CellType():
            cell.cell_contents = _copied(old.cell_contents, memo)
    space.update({name: _copied(value, memo) for name, value in changes.items()})
    made.__defaults__ = tuple(_copied(value, memo) for value in hook.__defaults__ or ()) or None
    made.__kwdefaults__ = {name: _copied(value, memo) for name, value in (hook.__kwdefaults__ or {}).items()} or None
    return made


def _is_copied(value: object, space: dict[str, Any]) -> bool:
    """Tell whether a global may lead to the model, or be written to: no function of other modules is followed."""
    if isinstance(value, types.FunctionType):
        return value.__globals__ is space
    owner = value.__self__ if isinstance(value, types.MethodType) else value
    return isinstance(owner, (nn.Module, Tensor, *CONTAINERS))


def _copied(value: Any, memo: Memo) -> Any:
    """Copy what a function reaches, as far as it can be copied."""
    if isinstance(value, types.FunctionType):
        return redirected(value, memo)
    attempts: list[Callable[[], Any]] = [lambda: copy.deepcopy(value, memo), lambda: copy.copy(value)]
    for attempt in attempts:
        try:
            return attempt()
        except Exception:
            continue
    return value
