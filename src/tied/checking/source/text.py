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


class Text:
    """A parsed file as the rules see it."""

    def __init__(self, text: str, tree: ast.Module, stem: str = "") -> None:
        """Take the file apart; `stem` is its name, whose words count as those of a function do."""
        self.text, self.stem = text, stem
        self.scopes, self.classes = scopes_of(tree)
        imports = (node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom))
        self.names = Names(imports, {name: 0 for scope in self.scopes for name in scope.bindings})
        for scope in self.scopes:
            _note_attributes(scope)
        self.follower = Follower(self.names, self.classes)

    @cached_property
    def comments(self) -> dict[int, str]:
        """The comments by line."""
        return comments_of(self.text)

    @cached_property
    def by_name(self) -> dict[str, Class]:
        """The classes of the file; of two with one name the last."""
        return {one.node.name: one for one in self.classes}

    def stored_by_call(self, scope: Scope) -> Iterator[Store]:
        """Yield what `setattr`, `register_parameter` and the like store, as if it were assigned."""
        for call, at in scope.calls:
            stored = _stored(call)
            if stored:
                yield Store(*stored, at)

    def is_tying(self, at: At) -> bool:
        """Whether a statement stands in a `with tied.tying(...)`, where assignments declare."""
        items = [item for block in at.blocks() for item in getattr(block.node, "items", [])]
        calls = [item.context_expr.func for item in items if isinstance(item.context_expr, ast.Call)]
        return any(self.names.meaning(call, at).startswith("tied.") for call in calls)


def _note_attributes(scope: Scope) -> None:
    """Enter what a method assigns to attributes of `self` into its class."""
    if not scope.owner or not scope.outer or not scope.outer.is_class or not isinstance(scope.node, ast.stmt):
        return
    first = next((name for name, found in scope.bindings.items() if found[0].kind == "self"), "")
    by_call = [Store(*stored, at) for call, at in scope.calls if (stored := _stored(call))]
    for store in (*scope.stores, *by_call):
        target = store.target
        if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == first:
            scope.owner.stores.setdefault(target.attr, []).append(store)


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
