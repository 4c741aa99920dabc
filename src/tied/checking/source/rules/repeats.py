"""TIE606: one module or Parameter, put into a list several times by `[...] * n`.

Owns: that recipe. Must not judge what a condition, a name or a comment asks for.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from tied.checking.source.found import Found, found
from tied.checking.source.places import PARAMETER
from tied.checking.source.scopes import At, Comprehension, lookup
from tied.checking.source.text import Text
from tied.checking.source.vocabulary import SHARING, WITH_PARAMETERS
from tied.checking.source.words import (
    asks_for_sharing,
    comments_at,
    conditions_around,
    docstrings_around,
    holding,
    names_around,
    words,
)

MODULE = "torch.nn.Module"
LISTS = ("torch.nn.ModuleList", "torch.nn.Sequential", "torch.nn.ParameterList")
LAYERS = re.compile(
    r"(Block|Layer|Cell|Attention|Linear|Conv\w*|Embedding|MLP|FFN|FeedForward|Encoder|Decoder|Expert)$"
)
BARE = re.compile(r"Pool|Activ|Drop|Flatten|Identity|Pad|Upsample|Reshape|Lambda|Mask|Position")
WITHOUT = ("affine", "elementwise_affine")
DEEP = 8


def repeated_modules(text: Text) -> Iterator[Found]:
    """Find `[nn.Linear(...)] * n`, `[layer] * n` and `[layer for _ in range(n)]`: n names for one module."""
    for scope in text.scopes:
        listed = {id(argument): name for name, argument in _in_lists(text, scope.calls)}
        for product, at in scope.products:
            for one, many in ((product.left, product.right), (product.right, product.left)):
                elements = one.elts if isinstance(one, ast.List | ast.Tuple) else []
                if isinstance(product.op, ast.Mult) and elements and not _is_one(many):
                    yield from _repeated(text, product, elements, at, listed.get(id(product), ""))
        for node, at in scope.comprehensions:
            if not isinstance(node, ast.ListComp | ast.GeneratorExp) or not isinstance(node.elt, ast.Name):
                continue
            if not _is_of_loop(node.elt.id, node):
                yield from _repeated(text, node, [node.elt], at, listed.get(id(node), ""))


def _in_lists(text: Text, calls: list[tuple[ast.Call, At]]) -> Iterator[tuple[str, ast.expr]]:
    for call, at in calls:
        name = text.follower.called(call, at)
        if name in LISTS:
            yield from ((name, a.value if isinstance(a, ast.Starred) else a) for a in call.args)


def _is_one(many: ast.expr) -> bool:
    return isinstance(many, ast.Constant) and many.value in (0, 1)


def _is_of_loop(name: str, node: Comprehension) -> bool:
    return any(isinstance(n, ast.Name) and n.id == name for g in node.generators for n in ast.walk(g.target))


def _repeated(text: Text, node: ast.expr, elements: list[ast.expr], at: At, held_by: str) -> Iterator[Found]:
    for element in elements:
        what = _has_parameters(text, element, at, held_by)
        if what and not _is_asked_for(text, node, at):
            shown = ast.unparse(element)
            shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
            message = f"The list repeats one {what}, {shown}: all repetitions are the same object, trained as one."
            yield found("TIE606", node, at, names=(shown,), message=message, fix=_fix(node, element, what))
            return


def _has_parameters(text: Text, node: ast.expr, at: At, held_by: str, depth: int = 0) -> str:
    """Return "module" or "Parameter" for what surely has numbers to train; "" for what may have none."""
    node, at = text.follower.value_of(node, at)
    if not isinstance(node, ast.Call) or depth > DEEP:
        return ""
    name = text.follower.called(node, at)
    short = name.removeprefix("torch.nn.")
    if name == PARAMETER:
        return "Parameter"
    if short in WITH_PARAMETERS and name != short:
        return "" if any(k.arg in WITHOUT and _is_false(k.value) for k in node.keywords) else "module"
    if name in LISTS or name == "copy.deepcopy":
        inner = [a.elt if isinstance(a, Comprehension) and not isinstance(a, ast.DictComp) else a for a in node.args]
        inner += [e for a in node.args if isinstance(a, ast.List | ast.Tuple) for e in a.elts]
        return "module" if any(_has_parameters(text, one, at, held_by, depth + 1) for one in inner) else ""
    own = _is_own_module(text, node, at, depth) or _is_own_function(text, node, at, depth)
    return "module" if own or _looks_like_layer(node, name, held_by) else ""


def _is_false(node: ast.expr) -> bool:
    return not (isinstance(node, ast.Constant) and node.value is True)


def _is_own_module(text: Text, call: ast.Call, at: At, depth: int) -> bool:
    """Whether a call makes a module of a class of this file that has parameters."""
    name = call.func.id if isinstance(call.func, ast.Name) else ""
    binding = lookup(name, at) if name in text.by_name else None
    one = text.by_name[name] if binding and isinstance(binding.at.statement, ast.ClassDef) else None
    if one is None or depth > DEEP:
        return False
    stores = [store for found in one.stores.values() for store in found]
    held_by = MODULE if any(text.names.meaning(base, at) == MODULE for base in one.node.bases) else ""
    if any(_has_parameters(text, store.value, store.at, held_by, depth + 1) for store in stores):
        return True
    return any(_is_own_module(text, ast.Call(base, [], []), at, depth + 1) for base in one.node.bases)


def _is_own_function(text: Text, call: ast.Call, at: At, depth: int) -> bool:
    """Whether a call is of a function of this file that returns a module with parameters."""
    binding = lookup(call.func.id, at) if isinstance(call.func, ast.Name) else None
    scope = text.functions.get(id(binding.at.statement)) if binding else None
    returns = scope.returns if scope and depth < DEEP else []
    return any(_has_parameters(text, value, there, "", depth + 1) for value, there in returns)


def _looks_like_layer(call: ast.Call, name: str, held_by: str) -> bool:
    """Whether a module from elsewhere is, by its name, one with parameters; that it is a module, the list says."""
    spoken = name.rpartition(".")[2] if name else ""
    return bool(held_by and LAYERS.search(spoken) and not BARE.search(spoken) and not name.startswith("torch."))


def _is_asked_for(text: Text, node: ast.expr, at: At) -> bool:
    """Whether a condition, a name, a docstring or a comment says that sharing is meant."""
    said = comments_at(text.comments, at.statement.lineno, max(node.end_lineno or 0, at.statement.lineno))
    told = " ".join([said, names_around(at), docstrings_around(at), *_targets(at.statement)])
    tests = (*conditions_around(at), *_chosen(at.statement, node))
    return bool(SHARING & words(told)) or any(map(asks_for_sharing, tests))


def _targets(statement: ast.stmt) -> list[str]:
    return [ast.unparse(target) for target in statement.targets] if isinstance(statement, ast.Assign) else []


def _chosen(statement: ast.stmt, node: ast.expr) -> Iterator[ast.expr]:
    """Yield the tests of the conditional expressions around a node."""
    for one in ast.walk(statement):
        if isinstance(one, ast.IfExp) and any(inner is node for inner in ast.walk(one)):
            yield holding(one.test, any(inner is node for inner in ast.walk(one.body)))


def _fix(node: ast.expr, element: ast.expr, what: str) -> str:
    """Write the list of several, and the way to say that one is meant."""
    many = node.generators[0].iter if isinstance(node, ast.ListComp | ast.GeneratorExp) else None
    if isinstance(node, ast.BinOp):
        count = node.right if isinstance(node.left, ast.List | ast.Tuple) else node.left
        many = ast.Call(ast.Name("range"), [count], [])
    over, shown = ast.unparse(many) if many else "range(n)", ast.unparse(element)
    if what == "Parameter":
        new = shown if isinstance(element, ast.Call) else f"torch.nn.Parameter({shown}.detach().clone())"
        return f"[{new} for _ in {over}]"
    new = shown if isinstance(element, ast.Call) else f"copy.deepcopy({shown})"
    depth = over.removeprefix("range(").removesuffix(")")
    one = (
        ""
        if not over.startswith("range(") or "," in depth
        else f"\n# or, one on purpose: tied.nn.Looped({shown}, {depth})"
    )
    return f"[{new} for _ in {over}]{one}"
