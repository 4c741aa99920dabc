"""TIE601: a Parameter made around the memory of another slot.

Owns: that recipe, through any spelling. Must not find `.data = ...`: see `pointers.py`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tied.checking.source.fixes import fix_of_tie
from tied.checking.source.found import Found, found
from tied.checking.source.living import live_together
from tied.checking.source.places import Place, View
from tied.checking.source.scopes import At, Comprehension, Store, encloses
from tied.checking.source.text import Text

CONTAINERS = ("torch.nn.ParameterList", "torch.nn.ParameterDict")
FROM_PRETRAINED = "torch.nn.Embedding.from_pretrained"


def second_parameters(text: Text) -> Iterator[Found]:
    """Find `target = Parameter(source)`, where the source is the weight of another slot, or a view of it."""
    for scope in text.scopes:
        for store in (*scope.stores, *text.stored_by_call(scope)):
            if not text.is_tying(store.at):
                yield from _of_store(text, store)
        yield from _of_one_tensor(text, [*scope.stores, *text.stored_by_call(scope)])


def _of_store(text: Text, store: Store) -> Iterator[Found]:
    value, at = text.follower.value_of(store.value, store.at)
    for call, where in wrappers(text, value, at):
        view = text.follower.view(given, where) if (given := _given(text, call, where)) else None
        target = _target(text, store, call is value)
        if target and text.follower.called(call, where) == FROM_PRETRAINED:
            target = target / "weight"
        if view and target and live_together(text, target, view.place, store.at):
            yield _found(text, store, call, target, view)


def _target(text: Text, store: Store, is_whole: bool) -> Place | None:
    target = text.follower.place(store.target, store.at)
    return target if is_whole or not target else target / "[new]"


def _given(text: Text, call: ast.Call, at: At) -> ast.expr | None:
    if text.follower.called(call, at) == FROM_PRETRAINED:
        return call.args[0] if call.args else None
    return text.follower.wrapped(call, at)


def _found(text: Text, store: Store, call: ast.Call, target: Place, view: View) -> Found:
    names = (_name(text, store, target), str(view))
    said = f"{names[0]} is a second Parameter over the memory of {view.place}"
    maker = ast.unparse(call.func) if target.root.kind == "self" and len(target.path) == 1 else ""
    message = f"{said}: optimizers step it twice, and a cast, a copy or a load parts the two."
    fix = fix_of_tie(text, target, view, maker=maker)
    return found("TIE601", call, store.at, names=names, message=message, fix=fix)


def _name(text: Text, store: Store, target: Place) -> str:
    return ast.unparse(store.target) if not isinstance(store.target, ast.Subscript) else str(target.owner)


def wrappers(text: Text, value: ast.expr, at: At) -> Iterator[tuple[ast.Call, At]]:
    """Yield the calls of `Parameter` that a value is, or that a list or dict of parameters holds."""
    stack: list[tuple[ast.AST, At]] = [(value, at)]
    while stack:
        node, where = stack.pop()
        if isinstance(node, ast.Name):
            node, where = text.follower.value_of(node, where)
        called = text.follower.called(node, where)
        if isinstance(node, ast.Call) and (called == FROM_PRETRAINED or text.follower.wrapped(node, where)):
            yield node, where
        elif called in CONTAINERS or isinstance(node, ast.List | ast.Tuple | ast.Dict | ast.IfExp | Comprehension):
            if isinstance(node, Comprehension):
                where = where._replace(inside=(*where.inside, node))
            stack += [(child, where) for child in _held(node)]


def _held(node: ast.AST) -> list[ast.expr]:
    """Return what a list, a dict or a call of one holds."""
    match node:
        case ast.Call():
            return [*node.args, *(keyword.value for keyword in node.keywords)]
        case ast.List() | ast.Tuple():
            return node.elts
        case ast.Dict():
            return node.values
        case ast.IfExp():
            return [node.body, node.orelse]
        case ast.DictComp():
            return [node.value]
        case ast.ListComp() | ast.SetComp() | ast.GeneratorExp():
            return [node.elt]
        case _:
            return []


def _of_one_tensor(text: Text, stores: list[Store]) -> Iterator[Found]:
    """Find a local tensor that two Parameters are made of."""
    first: dict[tuple[str, int], tuple[Store, Place, View]] = {}
    for store in stores:
        given = text.follower.wrapped(store.value, store.at)
        local = text.follower.local(given, store.at) if given else None
        target = text.follower.place(store.target, store.at)
        if not local or not target or not isinstance(store.value, ast.Call):
            continue
        other, place, shown = first.setdefault(local.place.root[:2], (store, target, local))
        apart = other.value is store.value or place.same(target) or (_is_part(local) and _is_part(shown))
        if not apart and encloses(other.at.block, store.at.block):
            view = View(place, local.steps)
            said = f"{target} and {place} are two Parameters over the memory of {local.place.root.name}"
            message = f"{said}: optimizers step it twice, and a cast, a copy or a load parts the two."
            maker = ast.unparse(store.value.func)
            fix = fix_of_tie(text, target, view, maker=maker)
            names = (str(target), str(place))
            yield found("TIE601", store.value, store.at, names=names, message=message, fix=fix)


def _is_part(view: View) -> bool:
    """Whether a view shows a part of a tensor, so that two of them may lie side by side."""
    return any(step.startswith(("[", ".narrow", ".select")) for step in view.steps)
