"""Whether two places live side by side, so that one weight for both is a matter of consequence.

Owns: what speaks for two live ends, and what speaks for a conversion, in which one end goes away. Must not look for
recipes. Where neither is known, two ends are not taken to live together.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tied.checking.source.places import Place
from tied.checking.source.scopes import At, FunctionNode, Scope, Store, encloses
from tied.checking.source.text import Text
from tied.checking.source.vocabulary import CONVERTING, HEADS, TABLES, TIES
from tied.checking.source.words import comments_at, docstrings_around, names_around, words

WALKS = frozenset(("modules()", "named_modules()", "children()", "named_children()"))
MAKES_FIRST, READS_BACK = frozenset(("encoder", "encode", "enc")), frozenset(("decoder", "decode", "dec"))
TYING = TIES | {"share", "shares", "shared", "sharing"}


def live_together(text: Text, target: Place, source: Place, at: At) -> bool:
    """Whether both ends are there afterwards, as parts of one model or as models that somebody uses together."""
    if source.within(target) or target.within(source) or is_gone(text, source, at):
        return False
    if _may_be_one(target, source):
        return False
    if target.root[:2] == source.root[:2]:
        return target.root.kind != "elsewhere" or len(target.path) > 1
    if CONVERTING & words(f"{names_around(at)} {text.stem}") or _ends_here(source, at):
        return False
    return _is_said(text, at) or _are_partners(target, source, at) or _are_used_together(text, target, source, at)


def _ends_here(place: Place, at: At) -> bool:
    """Whether a place starts from what a function made and does not hand out."""
    if place.root.kind != "made" or not isinstance(at.scope.node, FunctionNode):
        return False
    out = [*(value for value, _ in at.scope.returns), *(store.value for store in at.scope.stores)]
    return not any(isinstance(n, ast.Name) and n.id == place.root.name for one in out for n in _handed(one))


def _handed(value: ast.expr) -> Iterator[ast.AST]:
    """Yield the names in a value that are handed on whole: not `x` in `x.weight`."""
    inner = {id(n.value) for n in ast.walk(value) if isinstance(n, ast.Attribute)}
    return (node for node in ast.walk(value) if id(node) not in inner)


def _may_be_one(target: Place, source: Place) -> bool:
    """Whether names that nobody knows before the code runs may lead both to one slot, or one to the other's module."""
    if target.root[:2] != source.root[:2]:
        return False
    unknown = all(any(map(_is_unknown, place.path)) for place in (target, source))
    if target.owner.same(source.owner):
        return any(p.path[-1][0] == "{" for p in (target, source))
    walks = any(part in WALKS for part in (*target.path, *source.path))
    return walks and unknown


def _is_unknown(part: str) -> bool:
    """Whether a part of a path is known when the code runs: `{name}`, `modules()`, `get_submodule(name)`."""
    return part[0] == "{" or part in WALKS or (part.endswith(")") and not part.endswith("()"))


def _is_said(text: Text, at: At) -> bool:
    """Whether the names, comments or docstrings around speak of tying."""
    last = at.statement.end_lineno or at.statement.lineno
    said = comments_at(text.comments, at.statement.lineno, last)
    return bool(TYING & words(f"{names_around(at)} {said}") or TIES & words(docstrings_around(at)))


def _are_partners(target: Place, source: Place, at: At) -> bool:
    """Whether the ends are called encoder and decoder, or embedding and head."""
    if target.root.kind == "made" and source.root.kind == "self":
        return False
    around = names_around(at) if target.root.kind == "self" else ""
    left, right = words(f"{target} {around}"), words(str(source))
    return bool((READS_BACK & left and MAKES_FIRST & right) or (HEADS & left and TABLES & right))


def _are_used_together(text: Text, target: Place, source: Place, at: At) -> bool:
    """Whether one call takes both, as `Sequential(encoder, decoder)` or an optimizer of both does."""
    if "unknown" in (target.root.kind, source.root.kind) or target.root.kind == "self":
        return False
    for call, _ in at.scope.calls:
        given = [n.id for argument in _arguments(call) for n in ast.walk(argument) if isinstance(n, ast.Name)]
        if target.root.name in given and source.root.name in given and not _copies(call):
            return True
    return False


def _arguments(call: ast.Call) -> list[ast.expr]:
    return [*call.args, *(keyword.value for keyword in call.keywords)]


def _copies(call: ast.Call) -> bool:
    """Whether a call compares or pairs its arguments, which says nothing about what becomes of them."""
    name = ast.unparse(call.func).rpartition(".")[2]
    return bool(
        {"zip", "setattr", "isinstance", "equal", "allclose", "close", "print", "assert", "copy", "compare"}
        & {name, *words(name)}
    )


# -- what goes away ---------------------------------------------------------------------------------------


def is_gone(text: Text, source: Place, at: At) -> bool:
    """Whether the source, or a module that it lies in, is deleted, or replaced later on."""
    scopes = [at.scope]
    if source.root.kind == "self" and at.scope.owner:
        scopes += [scope for scope in at.scope.owner.methods.values() if scope is not at.scope]
    return any(_deletes(text, scope, source) or _replaces(text, scope, source, at) for scope in scopes)


def _deletes(text: Text, scope: Scope, source: Place) -> bool:
    for target, where in scope.deletions:
        place = text.follower.place(target, where)
        if _holds(place, source) or (isinstance(target, ast.Name) and place and source.root[:2] == place.root[:2]):
            return True
    return any(_holds(text.follower.place(gone, where), source) for gone, where in _taken_away(scope))


def _taken_away(scope: Scope) -> Iterator[tuple[ast.expr, At]]:
    """Yield what `delattr`, `__delattr__` and `_parameters.pop` delete, as the expression that would read it."""
    for call, at in scope.calls:
        match call:
            case ast.Call(func=ast.Name(id="delattr"), args=[of, name]):
                yield ast.Call(ast.Name("getattr"), [of, name], []), at
            case ast.Call(func=ast.Attribute(value=of, attr="__delattr__"), args=[name]):
                yield ast.Call(ast.Name("getattr"), [of, name], []), at
            case ast.Call(func=ast.Attribute(value=of, attr="pop"), args=[name, *_]):
                yield ast.Subscript(of, name), at
            case _:
                pass


def _replaces(text: Text, scope: Scope, source: Place, at: At) -> bool:
    stores = [*scope.stores, *text.stored_by_call(scope)]
    for store in stores:
        place = text.follower.place(store.target, store.at)
        if _holds(place, source) and _is_later(store, at) and not _is_itself(text, store, place):
            return True
    return False


def _is_itself(text: Text, store: Store, place: Place | None) -> bool:
    """Whether a store only gives a local value its place, as `self.encoder = encoder` does."""
    value = text.follower.place(store.value, store.at) if isinstance(store.value, ast.Name) else None
    return bool(value and place and value.same(place))


def _is_later(store: Store, at: At) -> bool:
    if store.at.scope is not at.scope:
        return isinstance(store.target, ast.Subscript) or _is_nothing(store.value)
    return store.at.number > at.number and encloses(store.at.block, at.block)


def _is_nothing(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is None


def _holds(place: Place | None, source: Place) -> bool:
    return bool(place and place.path and source.within(place))
