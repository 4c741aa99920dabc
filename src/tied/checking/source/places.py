"""Where a tensor lives, said by an expression: the module that owns it, its name there, and the views around it.

Owns: `Place`, `View`, and following local names, loops and comprehensions to them. Must not judge: where an
expression leads nowhere that is known, the answer is None. Read next: `living.py`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from tied.checking.source.imports import Names
from tied.checking.source.scopes import At, Binding, Class, each, lookup
from tied.checking.source.vocabulary import NO_MODULE, VIEWS

MOST_STEPS = 25  # from name to name
WEIGHT = re.compile(r"(?:^|_)(?:weight|bias|kernel)s?(?:$|_|\d)|^W(?:_\w+|\d*)$")
ACCESS = re.compile(r"^(get_\w+|(named_)?(parameters|modules|children|buffers)|state_dict|items|values)$")  # not makers
TURNED = frozenset(("T", "mT", "H", "mH"))
SAME = frozenset(("requires_grad_", "detach_"))
THROUGH = frozenset(("list", "tuple", "reversed", "iter", "enumerate", "dict", "sorted"))
PARAMETERS = frozenset(("parameters()", "named_parameters()", "state_dict()"))
PARAMETER = "torch.nn.Parameter"
WRAPS = "Parameter()"
CUTS = (".data", ".detach()", WRAPS)


class Root(NamedTuple):
    """What a place starts from: `self`, or a name; `key` tells apart what has the same name."""

    name: str
    key: int
    kind: str  # "self", "parameter", "made" (by a call), "elsewhere" (nothing in the file binds it), "unknown"


@dataclass(frozen=True)
class Place:
    """A path from a root: attributes, `[...]`, `call()`, `{dynamic attribute}`, and `*name` for each element.

    `loops` holds, for each `*name`, the target and the iterated expression of its loop.
    """

    root: Root
    path: tuple[str, ...] = ()
    loops: tuple[tuple[ast.expr, ast.expr], ...] = ()

    def __truediv__(self, part: str) -> Place:
        """Return the place one part further."""
        return replace(self, path=(*self.path, part))

    @property
    def owner(self) -> Place:
        """The module that it is an attribute of."""
        return replace(self, path=self.path[:-1])

    def same(self, other: Place) -> bool:
        """Whether both are one place."""
        return (self.root[:2], self.path) == (other.root[:2], other.path)

    def within(self, other: Place) -> bool:
        """Whether this is the other place, or a part of it."""
        return self.root[:2] == other.root[:2] and self.path[: len(other.path)] == other.path

    def __str__(self) -> str:
        """Spell it as it stands in the text."""
        return spelled(self.path, self.root.name)


def spelled(path: tuple[str, ...], start: str) -> str:
    """Write a path as an expression.

    Example:
        >>> spelled(("layers", "*layer", "heads", "[0]", "{name}"), "self")
        'getattr(layer.heads[0], name)'
    """
    text = start
    for part in path:
        if part[0] == "*":
            text = part[1:]
        elif part[0] == "{":
            text = f"getattr({text}, {part[1:-1]})"
        else:
            text += part if part[0] == "[" else f".{part}"
    return text


@dataclass(frozen=True)
class View:
    """The memory of a place, seen through `steps` such as `.t()`, `[:8]` and `.data`."""

    place: Place
    steps: tuple[str, ...] = ()

    @property
    def turns(self) -> tuple[str, ...]:
        """The steps that change the shape."""
        return tuple(step for step in self.steps if step not in CUTS)

    @property
    def cut(self) -> str:
        """What cuts it from its gradient: ".data", ".detach()", or "" where nothing does."""
        return next((step for step in CUTS if step in self.steps), "")

    def __str__(self) -> str:
        """Spell it, what cuts the gradient left out."""
        return str(self.place) + "".join(self.turns)


class Follower:
    """Follows expressions of one file."""

    def __init__(self, names: Names, classes: list[Class]) -> None:
        """Keep what the file's names mean."""
        self.names = names
        self.classes = {id(one): one for one in classes}
        self.parameters = {id(one): set(self._parameters_of(one)) for one in classes}

    def _parameters_of(self, one: Class) -> Iterator[str]:
        for name, stores in one.stores.items():
            if any(self.is_parameter(store.value, store.at) for store in stores):
                yield name

    def is_parameter(self, value: ast.expr, at: At) -> bool:
        """Whether a value is a `Parameter(...)`, or a list or dict of them."""
        return self.called(value, at) in (PARAMETER, "torch.nn.ParameterList", "torch.nn.ParameterDict")

    def called(self, node: ast.AST | None, at: At) -> str:
        """Return what is called, as a full name; "" where it is no call, or nothing known."""
        return self.names.meaning(node.func, at) if isinstance(node, ast.Call) else ""

    def wrapped(self, node: ast.expr, at: At) -> ast.expr | None:
        """Return what a `Parameter(...)` is made of; None where it is no such call."""
        if not isinstance(node, ast.Call) or self.called(node, at) != PARAMETER:
            return None
        given = [keyword.value for keyword in node.keywords if keyword.arg == "data"]
        return (node.args or given or [None])[0]

    def value_of(self, node: ast.expr, at: At, *, most: int = MOST_STEPS) -> tuple[ast.expr, At]:
        """Follow a name to the one value that it was given; return the expression itself where there is none."""
        for _ in range(most):
            if not isinstance(node, ast.Name):
                break
            binding = lookup(node.id, at)
            if binding is None or binding.kind != "value" or binding.value is None:
                break
            node, at = binding.value, binding.at
        return node, at

    def made_by(self, place: Place, at: At | None = None) -> tuple[str, str]:
        """Return the class whose call made the module at a place: torch's full name, and the name in the file.

        Both are "" where that is not known.
        """
        owner = self.classes.get(place.root.key)
        value, there = None, at
        if at and place.root.kind == "made" and not place.path:
            value, there = self.value_of(ast.Name(place.root.name), at)
        elif place.root.kind == "self" and owner and len(place.path) == 1 and owner.stores.get(place.path[0]):
            store = owner.stores[place.path[0]][-1]
            value, there = store.value, store.at
        if not isinstance(value, ast.Call) or there is None:
            return "", ""
        return self.called(value, there), value.func.id if isinstance(value.func, ast.Name) else ""

    # -- views

    def view(self, node: ast.expr, at: At, depth: int = 0) -> View | None:
        """Return the weight whose memory an expression shows; None where it may have memory of its own."""
        steps: list[str] = []
        while depth < MOST_STEPS:
            depth += 1
            inner, step = self._peeled(node, at)
            if inner is None:
                break
            node = inner
            steps.insert(0, step)
        value, where = self.value_of(node, at, most=1)
        found = self.view(value, where, depth) if value is not node and depth < MOST_STEPS else None
        if found is None:
            place = self.place(node, at)
            found = View(place) if place and self.is_weight(place) else None
        return replace(found, steps=(*found.steps, *filter(None, steps))) if found else None

    def local(self, node: ast.expr, at: At) -> View | None:
        """Return the tensor of a local name that an expression shows, one that torch made and nothing else names."""
        steps: list[str] = []
        while len(steps) < MOST_STEPS:
            inner, step = self._peeled(node, at)
            if inner is None:
                break
            node = inner
            steps.insert(0, step)
        value, where = self.value_of(node, at)
        while isinstance(value, ast.BinOp):
            value = value.left if isinstance(value.left, ast.Call) else value.right
        if not isinstance(node, ast.Name) or not self.called(value, where).startswith("torch."):
            return None
        place = self.place(node, at)
        return View(place, tuple(steps)) if place and place.root.kind == "made" and not place.path else None

    def _peeled(self, node: ast.expr, at: At) -> tuple[ast.expr | None, str]:
        """Take one view off: `w.t()` gives `w` and ".t()"; None where it is none."""
        match node:
            case ast.Attribute(attr="data"):
                return node.value, ".data"
            case ast.NamedExpr():
                return node.value, ""
            case ast.Attribute() if node.attr in TURNED:
                return node.value, f".{node.attr}"
            case ast.Subscript() if _is_view(node, self):
                return node.value, indexed(node.slice)
            case ast.Call(func=ast.Attribute(value=of, attr=name)) if not self.called(node, at):
                return self._method(of, name, node)
            case ast.Call():
                return self._function(node, at)
            case _:
                return None, ""

    def _method(self, of: ast.expr, name: str, call: ast.Call) -> tuple[ast.expr | None, str]:
        if name == "detach":
            return of, ".detach()"
        if name in SAME:
            return of, ""
        arguments = [*map(ast.unparse, call.args), *(ast.unparse(keyword) for keyword in call.keywords)]
        return (of, f".{name}({', '.join(arguments)})") if name in VIEWS else (None, "")

    def _function(self, call: ast.Call, at: At) -> tuple[ast.expr | None, str]:
        name = self.called(call, at)
        short = name.removeprefix("torch.").removeprefix("Tensor.")
        if name == PARAMETER:
            return self.wrapped(call, at), WRAPS
        if name.startswith("torch.") and short in (*VIEWS, "detach") and call.args:
            rest = ast.Call(call.func, call.args[1:], call.keywords)
            return self._method(call.args[0], short, rest)
        return None, ""

    # -- places

    def place(self, node: ast.expr, at: At, depth: int = 0) -> Place | None:
        """Return where an expression leads, step by step from its root; None where that cannot be said."""
        if depth > MOST_STEPS:
            return None
        match node:
            case ast.Name():
                return self._of_name(node, at, depth)
            case ast.Attribute():
                return _further(self.place(node.value, at, depth + 1), node.attr)
            case ast.Subscript():
                return self._of_key(self.place(node.value, at, depth + 1), node.slice)
            case ast.Call():
                return self._of_call(node, at, depth)
            case _:
                return None

    def _of_key(self, place: Place | None, key: ast.expr) -> Place | None:
        if place and place.path and place.path[-1] in ("_parameters", "_modules"):
            return _further(place.owner, attribute(key))
        return _further(place, indexed(key))

    def _of_call(self, node: ast.Call, at: At, depth: int) -> Place | None:
        function = node.func
        if isinstance(function, ast.Name) and function.id in THROUGH and node.args:
            return self.place(node.args[0], at, depth + 1)
        if isinstance(function, ast.Name) and function.id == "getattr" and len(node.args) == 2:
            return _further(self.place(node.args[0], at, depth + 1), attribute(node.args[1]))
        if isinstance(function, ast.Attribute) and ACCESS.match(function.attr) and not self.called(node, at):
            inner = self.place(function.value, at, depth + 1)
            if inner and function.attr in ("items", "values") and inner.path:
                return inner
            return _further(inner, f"{function.attr}({', '.join(map(ast.unparse, [*node.args, *node.keywords]))})")
        return None

    def _of_name(self, node: ast.Name, at: At, depth: int) -> Place | None:
        binding = lookup(node.id, at)
        if binding is None:
            return Place(Root(node.id, 0, "elsewhere"))
        if binding.kind == "self":
            owner = binding.at.scope.owner
            return Place(Root(node.id, id(owner), "self"))
        if binding.kind == "value" and binding.value is not None:
            found = self.place(binding.value, binding.at, depth + 1)
            return found or self.stored(node.id, binding, depth) or Place(Root(node.id, binding.key, "made"))
        if binding.kind == "each" and binding.value is not None:
            return self._element(node.id, binding, depth) or Place(Root(node.id, binding.key, "unknown"))
        if binding.kind == "parameter":
            return self.stored(node.id, binding, depth) or Place(Root(node.id, binding.key, "parameter"))
        return Place(Root(node.id, id(binding.at.scope), "unknown"))

    def stored(self, name: str, binding: Binding, depth: int = 0) -> Place | None:
        """Return the attribute in which a local value is kept: `self.decoder = decoder`."""
        for store in binding.at.scope.stores:
            if isinstance(store.value, ast.Name) and store.value.id == name and lookup(name, store.at) == binding:
                return self.place(store.target, store.at, depth + 1)
        return None

    def _element(self, name: str, binding: Binding, depth: int) -> Place | None:
        """Return the place of a loop's name: of `for a, b in zip(xs, ys)`, `b` is each element of `ys`."""
        iterated, position = binding.value, binding.position
        if isinstance(iterated, ast.Call) and isinstance(iterated.func, ast.Name) and position:
            if iterated.func.id == "zip" and position[0] < len(iterated.args):
                iterated, position = iterated.args[position[0]], position[1:]
            elif iterated.func.id == "enumerate" and position[0] == 1 and iterated.args:
                return self._element(name, replace(binding, value=iterated.args[0], position=position[1:]), depth)
        place = self.place(iterated, binding.at, depth + 1) if iterated else None
        if place is None:
            return None
        if position != ((1,) if _gives_pairs(place, iterated) else ()):
            return None
        return replace(place / f"*{name}", loops=(*place.loops, *_loop(name, binding)))

    # -- weights

    def is_weight(self, place: Place) -> bool:
        """Whether a place is known, or named, as a Parameter of a module."""
        if not place.path or NO_MODULE & {place.root.name, *place.path[:-1]}:
            return False
        last, before = place.path[-1], place.path[-2:-1]
        if last[0] in "*[":
            several = bool(before) and before[0].endswith("s") and self.is_weight(place.owner)
            return several or bool(before and before[0] in PARAMETERS)
        known = self.parameters.get(place.root.key, set()) if place.root.kind == "self" else set()
        return bool(last[0] == "{" or WEIGHT.search(last) or (len(place.path) == 1 and last in known))


def _loop(name: str, binding: Binding) -> list[tuple[ast.expr, ast.expr]]:
    """Return the target and the iterated expression of the loop that binds a name."""
    statement = binding.at.statement
    if isinstance(statement, ast.For | ast.AsyncFor) and name in dict(each(statement.target)):
        return [(statement.target, statement.iter)]
    return []


def _gives_pairs(place: Place, iterated: ast.expr | None) -> bool:
    if isinstance(iterated, ast.Call) and isinstance(iterated.func, ast.Attribute) and iterated.func.attr == "items":
        return True
    return bool(place.path) and place.path[-1].startswith("named_")


def _further(place: Place | None, part: str) -> Place | None:
    return place / part if place else None


def indexed(key: ast.expr) -> str:
    """Write an index in its brackets; a tuple of slices stands there without its own."""
    return ast.unparse(ast.Subscript(ast.Name("x"), key)).removeprefix("x")


def attribute(name: ast.expr) -> str:
    """Return the part of a path for an attribute whose name is an expression."""
    return name.value if isinstance(name, ast.Constant) and isinstance(name.value, str) else f"{{{ast.unparse(name)}}}"


def _is_view(node: ast.Subscript, follower: Follower) -> bool:
    """Whether an index gives a view of a tensor: slices, whole numbers and None; a name may be a mask, which copies."""
    parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    plain = all(isinstance(p, ast.Slice | ast.Constant) or _is_negative(p) for p in parts)
    sliced = any(isinstance(p, ast.Slice) for p in parts) or len(parts) > 1
    return plain and (
        sliced or (isinstance(node.value, ast.Attribute) and node.value.attr in ("weight", "bias", "data"))
    )


def _is_negative(node: ast.expr) -> bool:
    return isinstance(node, ast.UnaryOp) and isinstance(node.operand, ast.Constant)
