"""TIE602 and TIE603: `.data` pointed at another's memory, and a view assigned where a Parameter must be.

Owns: these two recipes. Must not find Parameters: see `parameters.py`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tied.checking.source.fixes import fix_of_tie
from tied.checking.source.found import Found, found
from tied.checking.source.living import is_gone, live_together
from tied.checking.source.places import PARAMETERS, WRAPS, Place, View
from tied.checking.source.scopes import At, Scope, Store
from tied.checking.source.text import Text
from tied.checking.source.vocabulary import WITH_PARAMETERS
from tied.checking.source.words import names_around, words

PORTING = frozenset(("convert", "conversion", "converter", "export", "port", "migrate"))


def pointed_data(text: Text) -> Iterator[Found]:
    """Find `target.data = source`, where the source is the memory of another weight."""
    for scope in text.scopes:
        for store in _pointings(text, scope):
            target = text.follower.view(store.target, store.at)
            view = text.follower.view(store.value, store.at)
            if not target or not view or target.turns or target.place.same(view.place) or text.is_tying(store.at):
                continue
            walked = _are_walked(text, target.place, view.place, store)
            if (walked or live_together(text, target.place, view.place, store.at)) and not _swaps(text, scope, view):
                said = f"{target.place}.data is pointed at the memory of {view.place}"
                message = (
                    f"{said}: two Parameters over one memory, stepped twice, and parted by a cast, a copy or a load."
                )
                names = (str(target.place), str(view))
                fix = fix_of_tie(text, target.place, view)
                yield found("TIE602", store.at.statement, store.at, names=names, message=message, fix=fix)


def _pointings(text: Text, scope: Scope) -> Iterator[Store]:
    for store in (*scope.stores, *text.stored_by_call(scope)):
        if isinstance(store.target, ast.Attribute) and store.target.attr == "data":
            yield store
    for call, at in scope.calls:
        if isinstance(call.func, ast.Attribute) and call.func.attr == "set_" and len(call.args) == 1:
            yield Store(ast.Attribute(call.func.value, "data"), call.args[0], at)


def _are_walked(text: Text, target: Place, source: Place, store: Store) -> bool:
    """Whether a loop walks through the parameters of two models side by side."""
    both = PARAMETERS & {*target.path} and PARAMETERS & {*source.path}
    return (
        bool(both) and not PORTING & words(f"{names_around(store.at)} {text.stem}") and not source.within(target.owner)
    )


def _swaps(text: Text, scope: Scope, source: View) -> bool:
    """Whether the source's `.data` is given other memory too, as where two weights change places."""
    views = [text.follower.view(store.target, store.at) for store in _pointings(text, scope)]
    return any(view and view.place.same(source.place) for view in views)


def raw_assignments(text: Text) -> Iterator[Found]:
    """Find `target = source.t()`, which torch refuses: a slot of a Parameter takes Parameters only."""
    for scope in text.scopes:
        for store in (*scope.stores, *text.stored_by_call(scope)):
            target = text.follower.place(store.target, store.at)
            view = text.follower.view(store.value, store.at)
            if not target or not view or not view.steps or WRAPS in view.steps or text.is_tying(store.at):
                continue
            other = not target.within(view.place) and not view.place.within(target)
            if other and _takes_parameters(text, target, view.place, store.at) and not is_gone(text, target, store.at):
                yield _refused(text, store, target, view)


def _takes_parameters(text: Text, target: Place, source: Place, at: At) -> bool:
    """Whether the slot holds a Parameter: its layer is one of torch's, or both ends look like it and live together."""
    if target.path[-1][0] in "[*{" or not text.follower.is_weight(target):
        return False
    maker, name = text.follower.made_by(target.owner, at)
    if maker.removeprefix("torch.nn.") in WITH_PARAMETERS:
        return True
    if name in text.by_name:
        own = text.by_name[name]
        derived = any(
            text.names.meaning(base, at).removeprefix("torch.nn.") in WITH_PARAMETERS for base in own.node.bases
        )
        return derived or target.path[-1] in text.follower.parameters[id(own)]
    if target.root.kind == "self" and len(target.path) == 1:
        return target.path[0] in text.follower.parameters.get(target.root.key, ())
    return not maker and target.path[-1] == source.path[-1] and live_together(text, target, source, at)


def _refused(text: Text, store: Store, target: Place, view: View) -> Found:
    given = f"{view.place}{''.join(view.steps)}"
    message = f"torch refuses this line: {target} takes a Parameter, and {given} is a tensor (TypeError)."
    names, fix = (str(target), str(view)), fix_of_tie(text, target, view)
    return found("TIE603", store.at.statement, store.at, names=names, message=message, fix=fix)
