"""The functions and classes of a file, flattened: what each binds, stores, calls and deletes, and where.

Owns: `Scope`, `Class`, `At`, `Binding`, and which binding reaches a use. Must not know torch. Read next: `places.py`.

Everything here walks with a stack of its own: a chain of a thousand `elif`s is no reason to fail.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
Comprehension = ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp
Kind = Literal["value", "each", "parameter", "self", "unknown"]
INNER = ("body", "orelse", "handlers", "finalbody", "cases")
NOTED = {ast.Call, ast.BinOp, ast.ListComp, ast.SetComp, ast.GeneratorExp, ast.DictComp, ast.NamedExpr}
OPEN = {ast.ListComp, ast.SetComp, ast.GeneratorExp, ast.DictComp, ast.Lambda}
LEAVES = {ast.Name, ast.Constant}
LOOPS = (ast.For, ast.AsyncFor, ast.While)


@dataclass(eq=False)
class Block:
    """A list of statements inside a compound statement: the body of an `if`, its `else`, of a loop."""

    node: ast.AST
    part: str
    outer: Block | None

    def around(self) -> Iterator[Block]:
        """Yield this block and those around it."""
        block: Block | None = self
        while block:
            yield block
            block = block.outer


class At(NamedTuple):
    """Where an expression stands: its scope, the number of its statement there, its block, what is around it.

    `inside` holds the comprehensions and lambdas around it in its statement, the outermost first.
    """

    scope: Scope
    number: int
    block: Block | None
    statement: ast.stmt
    inside: tuple[ast.expr, ...] = ()

    def blocks(self) -> Iterator[Block]:
        """Yield the blocks around it in its scope, the innermost first."""
        return self.block.around() if self.block else iter(())


@dataclass(eq=False)
class Binding:
    """What a name got: a value, each element of one (`position` says where in nested tuples), or an argument."""

    kind: Kind
    value: ast.expr | None
    at: At
    position: tuple[int, ...] = ()

    @property
    def key(self) -> int:
        """What tells it from other bindings of its name."""
        return id(self.value or self.at.statement)


class Store(NamedTuple):
    """One assignment `target = value`, tuples taken apart."""

    target: ast.expr
    value: ast.expr
    at: At


@dataclass(eq=False)
class Class:
    """A class: its bases, and every value that its methods assign to an attribute of `self`."""

    node: ast.ClassDef
    outer: Class | None
    stores: dict[str, list[Store]] = field(default_factory=dict[str, list[Store]])
    methods: dict[str, Scope] = field(default_factory=dict[str, "Scope"])


@dataclass(eq=False)
class Scope:
    """A function, or the body of a class or of the file."""

    node: ast.AST
    outer: Scope | None
    owner: Class | None = None
    bindings: dict[str, list[Binding]] = field(default_factory=dict[str, list[Binding]])
    stores: list[Store] = field(default_factory=list[Store])
    calls: list[tuple[ast.Call, At]] = field(default_factory=list[tuple[ast.Call, At]])
    products: list[tuple[ast.BinOp, At]] = field(default_factory=list[tuple[ast.BinOp, At]])
    comprehensions: list[tuple[Comprehension, At]] = field(default_factory=list[tuple[Comprehension, At]])
    deletions: list[tuple[ast.expr, At]] = field(default_factory=list[tuple[ast.expr, At]])
    imports: list[ast.Import | ast.ImportFrom] = field(default_factory=list[ast.Import | ast.ImportFrom])
    returns: list[tuple[ast.expr, At]] = field(default_factory=list[tuple[ast.expr, At]])

    @property
    def name(self) -> str:
        """Of the function; "" where it is none."""
        return self.node.name if isinstance(self.node, FunctionNode) else ""

    @property
    def is_class(self) -> bool:
        """Whether it is the body of a class, whose names its methods do not see."""
        return isinstance(self.node, ast.ClassDef)

    def bind(self, name: str, kind: Kind, value: ast.expr | None, at: At, position: tuple[int, ...] = ()) -> None:
        """Note that a name got something."""
        self.bindings.setdefault(name, []).append(Binding(kind, value, at, position))


def scopes_of(tree: ast.Module) -> tuple[list[Scope], list[Class]]:
    """Take a file apart."""
    scopes: list[Scope] = []
    classes: list[Class] = []
    pending: list[tuple[ast.AST, Scope | None, Class | None]] = [(tree, None, None)]
    while pending:
        node, outer, owner = pending.pop()
        scope = Scope(node, outer, owner)
        scopes.append(scope)
        if isinstance(node, ast.ClassDef):
            scope.owner = Class(node, owner)
            classes.append(scope.owner)
        elif isinstance(node, FunctionNode):
            _bind_arguments(scope, node)
            if owner and outer and outer.is_class:
                owner.methods[node.name] = scope
        pending += _fill(scope)
    return scopes, classes


def _fill(scope: Scope) -> list[tuple[ast.AST, Scope | None, Class | None]]:
    """Note every statement of a scope; return the functions and classes in it, for later."""
    found: list[tuple[ast.AST, Scope | None, Class | None]] = []
    stack: list[tuple[ast.AST, Block | None]] = [(node, None) for node in reversed(getattr(scope.node, "body", []))]
    index = 0
    while stack:
        node, block = stack.pop()
        index += 1
        if isinstance(node, ast.stmt):
            at = At(scope, index, block, node)
            if isinstance(node, FunctionNode | ast.ClassDef):
                found.append((node, scope, scope.owner))
                scope.bind(node.name, "unknown", None, at)
            else:
                _note(scope, node, at)
        if not isinstance(node, FunctionNode | ast.ClassDef):
            for part in reversed(INNER):
                inner = Block(node, part, block)
                stack += [(child, inner) for child in reversed(getattr(node, part, []))]
    return found


def _bind_arguments(scope: Scope, node: FunctionNode) -> None:
    arguments = node.args
    first = [*arguments.posonlyargs, *arguments.args]
    rest = [a for a in (*arguments.kwonlyargs, arguments.vararg, arguments.kwarg) if a]
    at = At(scope, -1, None, node)
    static = any(isinstance(mark, ast.Name) and mark.id == "staticmethod" for mark in node.decorator_list)
    of_self = bool(scope.outer and scope.outer.is_class and not static)
    for number, argument in enumerate([*first, *rest]):
        scope.bind(argument.arg, "self" if of_self and not number and first else "parameter", None, at)


def _note(scope: Scope, node: ast.stmt, at: At) -> None:
    """Note what one statement does, its blocks left out."""
    for expression, inside in expressions(node):
        kind = type(expression)
        if kind not in NOTED:
            continue
        here = at if not inside else at._replace(inside=inside)
        if isinstance(expression, ast.Call):
            scope.calls.append((expression, here))
        elif isinstance(expression, ast.BinOp):
            if isinstance(expression.op, ast.Mult | ast.MatMult):
                scope.products.append((expression, here))
        elif isinstance(expression, Comprehension):
            scope.comprehensions.append((expression, here))
        elif isinstance(expression, ast.NamedExpr):
            scope.bind(expression.target.id, "value", expression.value, here)
    note = NOTES.get(type(node))
    if note:
        note(scope, node, at)


def _note_assign(scope: Scope, node: ast.Assign, at: At) -> None:
    for target in node.targets:
        _assign(scope, target, node.value, at)


def _note_annotated(scope: Scope, node: ast.AnnAssign, at: At) -> None:
    if node.value:
        _assign(scope, node.target, node.value, at)


def _note_loop(scope: Scope, node: ast.For | ast.AsyncFor, at: At) -> None:
    for name, position in each(node.target):
        scope.bind(name, "each", node.iter, at, position)


def _note_delete(scope: Scope, node: ast.Delete, at: At) -> None:
    scope.deletions += [(target, at) for target in node.targets]
    _forget(scope, node.targets, at)


def _note_with(scope: Scope, node: ast.With | ast.AsyncWith, at: At) -> None:
    _forget(scope, [item.optional_vars for item in node.items if item.optional_vars], at)


def _note_import(scope: Scope, node: ast.Import | ast.ImportFrom, at: At) -> None:
    scope.imports.append(node)
    for alias in node.names:
        scope.bind(alias.asname or alias.name.split(".")[0], "unknown", None, at)


def _note_return(scope: Scope, node: ast.Return, at: At) -> None:
    scope.returns += [(node.value, at)] if node.value else []


def _note_augmented(scope: Scope, node: ast.AugAssign, at: At) -> None:
    _forget(scope, [node.target], at)


def _note_try(scope: Scope, node: ast.Try, at: At) -> None:
    _forget(scope, [ast.Name(handler.name) for handler in node.handlers if handler.name], at)


NOTES: dict[type[ast.stmt], Callable[[Scope, Any, At], None]] = {
    ast.Assign: _note_assign,
    ast.AnnAssign: _note_annotated,
    ast.AugAssign: _note_augmented,
    ast.For: _note_loop,
    ast.AsyncFor: _note_loop,
    ast.Delete: _note_delete,
    ast.With: _note_with,
    ast.AsyncWith: _note_with,
    ast.Import: _note_import,
    ast.ImportFrom: _note_import,
    ast.Return: _note_return,
    ast.Try: _note_try,
}


def _assign(scope: Scope, target: ast.expr, value: ast.expr, at: At) -> None:
    if isinstance(target, ast.Tuple | ast.List):
        if isinstance(value, ast.Tuple | ast.List) and len(target.elts) == len(value.elts):
            for one, its in zip(target.elts, value.elts, strict=True):
                _assign(scope, one, its, at)
        else:
            _forget(scope, target.elts, at)
    elif isinstance(target, ast.Name):
        scope.bind(target.id, "value", value, at)
    else:
        scope.stores.append(Store(target, value, at))


def _forget(scope: Scope, targets: Sequence[ast.expr], at: At) -> None:
    for target in targets:
        for name, _ in each(target):
            scope.bind(name, "unknown", None, at)


def each(target: ast.expr) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the names of a target, each with its place in the tuples: `n, (a, b)` gives n (0,), a (1, 0), b (1, 1)."""
    if isinstance(target, ast.Name):
        yield target.id, ()
    for place, one in enumerate(target.elts if isinstance(target, ast.Tuple | ast.List) else ()):
        yield from ((name, (place, *inner)) for name, inner in each(one))


def expressions(node: ast.stmt) -> Iterator[tuple[ast.AST, tuple[ast.expr, ...]]]:
    """Yield every expression of a statement but names and constants, with the comprehensions and lambdas around it."""
    stack: list[tuple[ast.AST, tuple[ast.expr, ...]]] = [(child, ()) for child in _children(node, INNER)]
    while stack:
        one, inside = stack.pop()
        if isinstance(one, ast.expr):
            yield one, inside
            if type(one) in OPEN:
                inside = (*inside, one)
        stack += [(child, inside) for child in _children(one)]


def _children(node: ast.AST, without: Sequence[str] = ()) -> list[ast.AST]:
    """Return the nodes below a node, the last first; names and constants have nothing below them and are left out."""
    found: list[ast.AST] = []
    for name in node._fields:
        value = getattr(node, name, None)
        if value is None or name in without:
            continue
        if isinstance(value, list):
            found += [one for one in value if isinstance(one, ast.AST) and type(one) not in LEAVES]
        elif isinstance(value, ast.AST) and type(value) not in LEAVES:
            found.append(value)
    found.reverse()
    return found


# -- which binding reaches a use --------------------------------------------------------------------------


def encloses(outer: Block | None, inner: Block | None) -> bool:
    """Whether one block is another, or around it; None is the body of the scope."""
    return outer is None or (inner is not None and outer in inner.around())


def lookup(name: str, at: At) -> Binding | None:
    """Return the one binding that a use of a name sees; of kind "unknown" where it may be one of several."""
    for depth in range(len(at.inside) - 1, -1, -1):
        found = _inside(name, at, depth)
        if found:
            return found
    scope: Scope | None = at.scope
    while scope:
        bindings = scope.bindings.get(name)
        if bindings and (scope is at.scope or not scope.is_class):
            if scope is at.scope:
                return _reaching(bindings, at)
            return bindings[0] if len(bindings) == 1 else Binding("unknown", None, bindings[0].at)
        scope = scope.outer
    return None


def _inside(name: str, at: At, depth: int) -> Binding | None:
    node, outer = at.inside[depth], at._replace(inside=at.inside[:depth])
    if isinstance(node, ast.Lambda):
        names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        return Binding("parameter", node, outer) if name in names else None
    for generator in node.generators if isinstance(node, Comprehension) else ():
        for one, position in each(generator.target):
            if one == name:
                return Binding("each", generator.iter, outer, position)
    return None


def _reaching(bindings: list[Binding], at: At) -> Binding:
    unknown = Binding("unknown", None, bindings[0].at)
    before = [binding for binding in bindings if binding.at.number < at.number]
    if not before or (not encloses(before[-1].at.block, at.block) and not _is_loop_of(before[-1], at)):
        return unknown
    last = before[-1]
    loops = [block for block in at.blocks() if isinstance(block.node, LOOPS)]
    for later in bindings[len(before) :]:
        if any(encloses(loop, later.at.block) and not encloses(loop, last.at.block) for loop in loops):
            return unknown if last.kind != "each" else last
    return last


def _is_loop_of(binding: Binding, at: At) -> bool:
    """Whether a loop binds the name, and the use stands in the loop."""
    return any(block.node is binding.at.statement for block in at.blocks())
