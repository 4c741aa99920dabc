"""TIE604 and TIE605: a weight copied at every step, and a weight used without its gradient.

Owns: these two recipes. Must not look outside of forwards and hooks.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tied.checking.source.fixes import fix_of_tie
from tied.checking.source.found import Found, found
from tied.checking.source.living import TYING, is_gone
from tied.checking.source.places import Place, View
from tied.checking.source.running import Running
from tied.checking.source.scopes import At, Scope, Store
from tied.checking.source.text import Text
from tied.checking.source.vocabulary import AVERAGING, OPERATIONS, SELECTING, WITHOUT_EFFECT
from tied.checking.source.words import conditions_around, names_around, words

TURNS = (".t()", ".T", ".mT", ".H", ".mH", ".transpose", ".permute", ".swap", ".adjoint", ".moved", ".movea")


def copies(text: Text) -> Iterator[Found]:
    """Find weights copied into others in a forward or in a hook: one side trains, the other is written over."""
    running = Running(text)
    for scope in text.scopes:
        for node, target, source, at in (*_copied(text, scope), *_loaded(text, scope)):
            here = "forward" if running.is_forward(at) else "hook" if running.is_hook(at) else ""
            related = target.root[:2] == source.place.root[:2] or (
                here == "hook" and _is_argument(target, source.place)
            )
            if here and related and _are_two(text, target, source.place, at) and _is_steady(at, f"{target} {source}"):
                said = f"{source} is copied into {target} in a {here}"
                message = f"{said}: only one of the two is trained, and what the other learns is written over."
                fix = fix_of_tie(text, target, source)
                names = (str(target), str(source))
                yield found("TIE604", node, at, names=names, message=message, fix=fix)


def _is_argument(target: Place, source: Place) -> bool:
    """Whether one end belongs to the module that a hook is given."""
    return "parameter" in (target.root.kind, source.root.kind)


def _are_two(text: Text, target: Place, source: Place, at: At) -> bool:
    apart = not source.within(target) and not target.within(source)
    return apart and not is_gone(text, source, at)


def _copied(text: Text, scope: Scope) -> Iterator[tuple[ast.expr | ast.stmt, Place, View, At]]:
    """Yield `target.copy_(source)` and `target.data[...] = source`."""
    stores = [Store(s.target.value, s.value, s.at) for s in scope.stores if isinstance(s.target, ast.Subscript)]
    calls = [
        Store(call.func.value, call.args[0], at)
        for call, at in scope.calls
        if isinstance(call.func, ast.Attribute) and call.func.attr == "copy_" and call.args
    ]
    for store in (*stores, *calls):
        target = text.follower.view(store.target, store.at)
        source = text.follower.view(_bare(store.value), store.at)
        if target and source and (store in calls or target.cut):
            yield store.at.statement, target.place, source, store.at


def _bare(node: ast.expr) -> ast.expr:
    """Take off what changes nothing where the values are copied anyway."""
    while isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in WITHOUT_EFFECT:
        node = node.func.value
    return node


def _loaded(text: Text, scope: Scope) -> Iterator[tuple[ast.expr | ast.stmt, Place, View, At]]:
    """Yield `target.load_state_dict(source.state_dict())`."""
    for call, at in scope.calls:
        match call:
            case ast.Call(func=ast.Attribute(value=to, attr="load_state_dict"), args=[ast.Call(func=of), *_]):
                if isinstance(of, ast.Attribute) and of.attr == "state_dict":
                    target, source = text.follower.place(to, at), text.follower.place(of.value, at)
                    if target and source and target.path and source.path:
                        yield at.statement, target, View(source), at
            case _:
                pass


def _is_steady(at: At, names: str) -> bool:
    """Whether it happens at every step, for no reason that its names or conditions give."""
    if AVERAGING & words(f"{names} {names_around(at)}"):
        return False
    return all({"training", *TYING} & words(ast.unparse(test)) for test in conditions_around(at))


# -- without a gradient -----------------------------------------------------------------------------------


def detached_uses(text: Text) -> Iterator[Found]:
    """Find a layer's weight used once more in a forward, cut from its gradient."""
    running = Running(text)
    for scope in text.scopes:
        for node, operand, at in _operands(text, scope):
            view = text.follower.view(operand, at)
            if not view or not view.cut or not running.is_forward(at) or running.is_without_gradient(at):
                continue
            if _is_second_use(text, scope, view) and _is_steady(at, str(view)) and _is_meant_to_learn(scope, view):
                said = f"{view} is used here without its gradient ({view.cut})"
                message = f"{said}: {view.place} learns from its other uses only."
                fix = _without_cut(node, view)
                yield found("TIE605", node, at, names=(str(view.place),), message=message, fix=fix)


def _operands(text: Text, scope: Scope) -> Iterator[tuple[ast.expr, ast.expr, At]]:
    """Yield the operands of the products in a scope."""
    for call, at in scope.calls:
        name = text.follower.called(call, at) or (call.func.attr if isinstance(call.func, ast.Attribute) else "")
        if name.rpartition(".")[2] in OPERATIONS:
            yield from ((call, given, at) for given in (*call.args, *(keyword.value for keyword in call.keywords)))
    for product, at in scope.products:
        if isinstance(product.op, ast.MatMult):
            yield from ((product, given, at) for given in (product.left, product.right))


def _is_second_use(text: Text, scope: Scope, view: View) -> bool:
    """Whether the weight belongs to a submodule that the class calls, too, or whose weight it uses whole."""
    place = view.place
    if place.root.kind != "self" or len(place.path) < 2 or not scope.owner:
        return False
    layer = place.owner
    for method in scope.owner.methods.values():
        for call, at in method.calls:
            called = text.follower.place(call.func, at)
            if called and _may_be(called, layer):
                return True
        for _, operand, at in _operands(text, method):
            other = text.follower.view(operand, at)
            if other and not other.cut and other.place.same(place):
                return True
    return False


def _may_be(called: Place, layer: Place) -> bool:
    """Whether what is called is a layer, or holds it; any index may be any other."""
    one, other = ([part if part[0] not in "[*" else "*" for part in place.path] for place in (called, layer))
    return called.root[:2] == layer.root[:2] and bool(one) and one == other[: len(one)]


def _is_meant_to_learn(scope: Scope, view: View) -> bool:
    """Whether the values go on: what only chooses a row loses no gradient, and `.detach()` alone is deliberate."""
    chosen = {call.func.attr for call, _ in scope.calls if isinstance(call.func, ast.Attribute)}
    turned = any(step.startswith(TURNS) for step in view.turns)
    return not SELECTING & chosen and (".data" in view.steps or turned)


class _Whole(ast.NodeTransformer):
    """Takes `.data` and `.detach()` off."""

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        return node.value if node.attr == "data" else node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        detaches = isinstance(node.func, ast.Attribute) and node.func.attr == "detach" and not node.args
        return node.func.value if detaches and isinstance(node.func, ast.Attribute) else node


def _without_cut(node: ast.expr, view: View) -> str:
    whole = ast.unparse(_Whole().visit(ast.parse(ast.unparse(node), mode="eval").body))
    if whole == ast.unparse(node):
        whole = f"weight = {view}"
    layer = f"\n# or, with tied, in __init__: tied.nn.TiedLinear({view.place.owner})"
    return whole + (layer if view.turns in ((".t()",), (".T",), (".mT",)) else "")
