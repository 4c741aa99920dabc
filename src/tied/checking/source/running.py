"""Which functions run at every step: forwards, what they call, and hooks.

Owns: telling them. Must not look for recipes.
"""

from __future__ import annotations

import ast
import re

from tied.checking.source.scopes import At, Class, Scope
from tied.checking.source.text import Text

FORWARD = re.compile(r"^(forward\w*|__call__|training_step|_?shared_step)$")
HOOK = re.compile(r"^(on_\w*(batch|step)\w*|optimizer_step|configure_gradient_clipping)$")
REGISTERS = re.compile(r"^register_(?!\w*state_dict)\w*hook$")  # what runs on loading or saving runs once
WITHOUT_GRADIENT = ("torch.no_grad", "torch.inference_mode", "torch.autograd.no_grad", "torch.set_grad_enabled")


class Running:
    """The functions of a file that run at every step."""

    def __init__(self, text: Text) -> None:
        """Find the forwards, the methods that they call, and the hooks."""
        self.text = text
        self.hooks = {name for scope in text.scopes for call, _ in scope.calls for name in _registered(call)}
        self.forwards = {id(scope) for one in text.classes for scope in _reached(one)}

    def is_forward(self, at: At) -> bool:
        """Whether a place is in a forward of a class, or in what it calls."""
        return any(id(scope) in self.forwards for scope in _chain(at.scope))

    def is_hook(self, at: At) -> bool:
        """Whether a place is in a function that is registered as a hook, or that a trainer calls at every step."""
        if any(isinstance(node, ast.Lambda) and f"lambda {id(node)}" in self.hooks for node in at.inside):
            return True
        return any(scope.name in self.hooks or (scope.owner and HOOK.match(scope.name)) for scope in _chain(at.scope))

    def is_without_gradient(self, at: At) -> bool:
        """Whether no gradient is recorded at a place anyway."""
        items = [item for block in at.blocks() for item in getattr(block.node, "items", [])]
        marks = [mark for scope in _chain(at.scope) for mark in getattr(scope.node, "decorator_list", [])]
        for node in (*(item.context_expr for item in items), *marks):
            called = node.func if isinstance(node, ast.Call) else node
            if self.text.names.meaning(called, at) in WITHOUT_GRADIENT:
                return True
        return False


def _chain(scope: Scope | None) -> list[Scope]:
    found: list[Scope] = []
    while scope:
        found.append(scope)
        scope = scope.outer
    return found


def _registered(call: ast.Call) -> list[str]:
    """Return the names of the functions that a call registers as hooks; of a lambda, what tells it from others."""
    if not isinstance(call.func, ast.Attribute) or not REGISTERS.match(call.func.attr):
        return []
    found: list[str] = []
    for node in (*call.args, *(keyword.value for keyword in call.keywords)):
        if isinstance(node, ast.Call) and node.args:
            node = node.args[0]  # functools.partial(hook, ...)
        if isinstance(node, ast.Lambda):
            found.append(f"lambda {id(node)}")
        elif isinstance(node, ast.Name | ast.Attribute):
            found.append(node.id if isinstance(node, ast.Name) else node.attr)
    return found


def _reached(one: Class) -> list[Scope]:
    """Return the forwards of a class and the methods that they call on `self`."""
    found = {name: scope for name, scope in one.methods.items() if FORWARD.match(name)}
    pending = list(found.values())
    while pending:
        for call, _ in pending.pop().calls:
            name = call.func.attr if isinstance(call.func, ast.Attribute) and _is_self(call.func.value) else ""
            if name in one.methods and name not in found:
                found[name] = one.methods[name]
                pending.append(one.methods[name])
    return list(found.values())


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"
