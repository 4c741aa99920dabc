"""One file, taken apart: its scopes, classes, names and comments.

Owns: `Text`, what the rules read. Must not judge. Read next: `scopes.py`, `places.py`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cached_property

from tied.checking.source.imports import Names
from tied.checking.source.places import Follower
from tied.checking.source.scopes import At, Class, Scope, Store, scopes_of
from tied.checking.source.words import comments_of

STORING = frozenset(("setattr", "register_parameter", "__setattr__", "append"))


class Text:
    """A parsed file as the rules see it."""

    def __init__(self, text: str, tree: ast.Module, stem: str = "") -> None:
        """Hold a file; `stem` is its name, whose words count as those of a function do."""
        self.text, self.tree, self.stem = text, tree, stem
        self.scopes: list[Scope] = []
        self.classes: list[Class] = []
        self._by_call: dict[int, list[Store]] = {}

    def take_apart(self) -> None:
        """Find the scopes and what their names mean."""
        self.scopes, self.classes = scopes_of(self.tree)
        imports = [node for scope in self.scopes for node in scope.imports]
        self.names = Names(imports, {name for scope in self.scopes for name in scope.bindings})
        for scope in self.scopes:
            self._note_attributes(scope)
        self.follower = Follower(self.names, self.classes)

    def forget(self) -> None:
        """Cut the circles between scopes and what stands in them, so that a file's tree goes when its look is over."""
        for part in (*self.scopes, *self.classes):
            part.__dict__.clear()

    @cached_property
    def comments(self) -> dict[int, str]:
        """The comments by line."""
        return comments_of(self.text)

    @cached_property
    def by_name(self) -> dict[str, Class]:
        """The classes of the file; of two with one name the last."""
        return {one.node.name: one for one in self.classes}

    @cached_property
    def functions(self) -> dict[int, Scope]:
        """The scopes of functions by what tells their nodes apart."""
        return {id(scope.node): scope for scope in self.scopes if scope.name}

    def stored_by_call(self, scope: Scope) -> list[Store]:
        """Return what `setattr`, `register_parameter` and the like store, as if it were assigned."""
        if id(scope) not in self._by_call:
            self._by_call[id(scope)] = list(_stored_in(scope))
        return self._by_call[id(scope)]

    def _note_attributes(self, scope: Scope) -> None:
        """Enter what a method assigns to attributes of `self` into its class."""
        if not scope.owner or not scope.name or not scope.outer or not scope.outer.is_class:
            return
        first = next((name for name, found in scope.bindings.items() if found[0].kind == "self"), "")
        for store in (*scope.stores, *self.stored_by_call(scope)):
            target = store.target
            if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == first:
                scope.owner.stores.setdefault(target.attr, []).append(store)

    def is_tying(self, at: At) -> bool:
        """Whether a statement stands in a `with tied.tying(...)`, where assignments declare."""
        items = [item for block in at.blocks() for item in getattr(block.node, "items", [])]
        calls = [item.context_expr.func for item in items if isinstance(item.context_expr, ast.Call)]
        return any(self.names.meaning(call, at).startswith("tied.") for call in calls)


def _stored_in(scope: Scope) -> Iterator[Store]:
    for call, at in scope.calls:
        name = getattr(call.func, "attr", "") or getattr(call.func, "id", "")
        stored = _stored(call) if name in STORING else None
        if stored:
            yield Store(*stored, at)


def _stored(call: ast.Call) -> tuple[ast.expr, ast.expr] | None:
    """Return target and value of a call that stores an attribute."""
    match call:
        case ast.Call(func=ast.Name(id="setattr"), args=[of, name, value]):
            return _attribute(of, name), value
        case ast.Call(func=ast.Attribute(value=of, attr="register_parameter" | "__setattr__"), args=[name, value]):
            return _attribute(of, name), value
        case ast.Call(func=ast.Attribute(value=of, attr="register_parameter"), args=[name], keywords=[keyword]):
            return _attribute(of, name), keyword.value
        case ast.Call(func=ast.Attribute(value=of, attr="register_parameter"), keywords=[name, value]):
            return _attribute(of, name.value), value.value
        case ast.Call(func=ast.Attribute(value=of, attr="append"), args=[value]):
            return ast.Subscript(of, ast.Constant("new")), value
        case _:
            return None


def _attribute(of: ast.expr, name: ast.expr) -> ast.expr:
    if isinstance(name, ast.Constant) and isinstance(name.value, str):
        return ast.Attribute(of, name.value)
    return ast.Call(ast.Name("getattr"), [of, name], [])
