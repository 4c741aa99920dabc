"""Expressions: what a target equals, as a value.

Owns: the tree (an address, or a transform of expressions), its canonical form and its value. Must not hold tensors,
nor know any transform by name: what `.T` and `+` build stands in `FORMS`. Read next: `parser.py`, the text form.

    >>> from tied.algebra import ref
    >>> weight = ref("encoder.weight")
    >>> print(2 * weight.T[:10])
    2 * encoder.weight.T[:10]
    >>> weight.T.T == weight
    True
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from tied.algebra.address import Address, show_address
from tied.algebra.transform import ATTRIBUTES, FORMS, METHODS, MOST_DEPTH, Transform
from tied.errors import KindError, ParseError, ShapeError, TieError, TransformError, nearest, short

MOST_NODES = 256  # a longer expression is a mistake, and deep trees exhaust Python's stack
Read = Callable[[], Tensor]


class Expression:
    """What a target equals: an address, or a transform of other expressions.

    Immutable, hashable pure data in canonical form: equal text, equal value. Everything that torch tensors
    answer to among the transforms of the language works here and gives another expression.
    """

    __module__ = "tied"

    # -- what it is ---------------------------------------------------------------------------------

    size = 1
    """How many transforms and addresses it has."""
    nesting = 0
    """How many brackets stand inside each other in its text."""

    def nodes(self) -> Iterator[Expression]:
        """Yield every expression inside, outermost first."""
        raise TypeError(f"{type(self).__name__} is not a finished expression")

    def sources(self) -> tuple[Address, ...]:
        """Return the addresses that are read, each once, from left to right."""
        return tuple(dict.fromkeys(node.address for node in self.nodes() if isinstance(node, Ref)))

    def text(self, binds: int = 0) -> str:
        """Print, in parentheses where something that binds as tightly as `binds` is asked for."""
        raise TypeError(f"{type(self).__name__} is not a finished expression")

    def __str__(self) -> str:
        """Print the canonical text; `parse(str(e)) == e`."""
        return self.text()

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle and copy as text, however deep the tree is."""
        return FORMS["parse"], (str(self),)

    # -- what it does -------------------------------------------------------------------------------

    def compile(self, read: Callable[[Address], Read]) -> Read:
        """Return a function without arguments that computes the value, reading each source when called."""
        raise TypeError(f"{type(self).__name__} is not a finished expression")

    def value(self, tensors: Mapping[Address, Tensor]) -> Tensor:
        """Return the value for the given source tensors."""
        return self.compile(lambda address: lambda: tensors[address])()

    def infer(self, metas: Mapping[Address, Tensor]) -> Tensor:
        """Return shape and dtype as a tensor on the meta device.

        Raises:
            ShapeError: a transform cannot be applied to what it is given; nothing was computed.
        """
        raise TypeError(f"{type(self).__name__} is not a finished expression")

    def devices(self, devices: Mapping[Address, torch.device]) -> set[torch.device]:
        """Return the device of the value as a set; more than one means that the sources do not meet."""
        raise TypeError(f"{type(self).__name__} is not a finished expression")

    def substitute(self, definitions: Mapping[Address, Expression]) -> Expression:
        """Replace addresses by expressions."""
        raise TypeError(f"{type(self).__name__} is not a finished expression")

    # -- how it is built ----------------------------------------------------------------------------

    def apply(self, transform: Transform, *others: Expression) -> Expression:
        """Apply a transform to this and other expressions, and simplify.

        Raises:
            ParseError: the result would be longer than anyone means.
        """
        operands = tuple(as_expression(operand) for operand in (self, *others))
        if sum(operand.size for operand in operands) >= MOST_NODES:
            raise _too_large(f"more than {MOST_NODES} transforms and addresses")
        if len(operands) == 1 and isinstance(self, Apply) and len(self.operands) == 1:
            shorter = transform.after(self.transform)
            if shorter is not None:
                return _reapply(self.operands[0], shorter)
        made = Apply(transform, operands)
        if made.nesting >= MOST_DEPTH:
            raise _too_large(f"{MOST_DEPTH} brackets inside each other")
        return made

    def __add__(self, other: Expression) -> Expression:
        """Return the sum."""
        return FORMS["+"](self, other)

    def __sub__(self, other: Expression) -> Expression:
        """Return the difference."""
        return FORMS["-"](self, other)

    def __neg__(self) -> Expression:
        """Return the negative."""
        return FORMS["-e"](self)

    def __mul__(self, other: Any) -> Expression:
        """Return the product with a number, a list of constants, or another expression."""
        return FORMS["*"](self, other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Expression:
        """Return the quotient by a number."""
        return FORMS["/"](self, other)

    def __matmul__(self, other: Expression) -> Expression:
        """Return the matrix product."""
        return FORMS["@"](self, other)

    __array_ufunc__ = None  # NumPy's arrays leave the answer to us

    def __radd__(self, other: object) -> Expression:
        """Refuse what is no expression on the left; the message says why."""
        return as_expression(other) + self

    __rsub__ = __rmatmul__ = __rtruediv__ = __radd__

    def __getitem__(self, key: Any) -> Expression:
        """Return a slice, or a gather where `key` is an expression: the address of an index buffer."""
        return FORMS["[]"](self, key)

    def __iter__(self) -> Iterator[Expression]:
        """Refuse: an expression has no known length."""
        raise TypeError(f"'{self}' is an expression; select from it with slices")

    def __getattr__(self, name: str) -> Any:
        """Return torch's method of that name, which gives another expression; refuse what is no transform."""
        if name in METHODS:
            return FORMS[name](self) if name in ATTRIBUTES else partial(FORMS[name], self)
        if name.startswith("_"):
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")
        raise _unknown(self, name)

    def __dir__(self) -> list[str]:
        """List the transforms too, for whoever presses Tab."""
        return sorted({*super().__dir__(), *METHODS})

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Expression:
        """Answer torch's functions: `torch.cat([a, b])`, `torch.exp(a)`, `torch.kron(a, b)`."""
        return _answer(cls, func, args, kwargs or {})


@dataclass(frozen=True, repr=False)
class Ref(Expression):
    """The tensor at an address."""

    address: Address

    def nodes(self) -> Iterator[Expression]:
        """Yield itself."""
        yield self

    def text(self, binds: int = 0) -> str:
        """Print the address."""
        return show_address(self.address)

    def __repr__(self) -> str:
        """Print as a call that makes it."""
        return f"parse({str(self)!r})"

    def compile(self, read: Callable[[Address], Read]) -> Read:
        """Return the reader of the address."""
        return read(self.address)

    def infer(self, metas: Mapping[Address, Tensor]) -> Tensor:
        """Return what is known of the source."""
        return metas[self.address]

    def devices(self, devices: Mapping[Address, torch.device]) -> set[torch.device]:
        """Return the device of the source."""
        return {devices[self.address]}

    def substitute(self, definitions: Mapping[Address, Expression]) -> Expression:
        """Return the definition of the address, if there is one."""
        return definitions.get(self.address, self)


@dataclass(frozen=True, repr=False)
class Apply(Expression):
    """A transform of expressions. Made by `Expression.apply` alone, which keeps the canonical form."""

    transform: Transform
    operands: tuple[Expression, ...]

    @cached_property
    def size(self) -> int:  # type: ignore[override]
        """How many transforms and addresses it has."""
        return 1 + sum(operand.size for operand in self.operands)

    @cached_property
    def nesting(self) -> int:  # type: ignore[override]
        """How many brackets stand inside each other in its text."""
        most = level = 0
        pieces = self.transform.text([_Hole(operand) for operand in self.operands]).split(_Hole.mark)
        for piece, operand in zip_longest(pieces, self.operands):
            for bracket in _BRACKET.findall(piece):
                level += 1 if bracket in "([" else -1
                most = max(most, level)
            most = max(most, level + (operand.nesting if operand else 0))
        return most

    def nodes(self) -> Iterator[Expression]:
        """Yield itself, then what is inside."""
        yield self
        for operand in self.operands:
            yield from operand.nodes()

    def text(self, binds: int = 0) -> str:
        """Let the transform print itself."""
        text = self.transform.text(self.operands)
        return f"({text})" if self.transform.binds < binds else text

    def __repr__(self) -> str:
        """Print as a call that makes it."""
        return f"parse({str(self)!r})"

    def compile(self, read: Callable[[Address], Read]) -> Read:
        """Compose the transform with the readers of its operands."""
        function = self.transform.function()
        readers = [operand.compile(read) for operand in self.operands]
        if len(readers) == 1:
            (only,) = readers
            return lambda: function(only())
        return lambda: function(*[reader() for reader in readers])

    def infer(self, metas: Mapping[Address, Tensor]) -> Tensor:
        """Run torch's own shape rule."""
        operands = [operand.infer(metas) for operand in self.operands]
        try:
            return self.transform.infer(*operands)
        except (RuntimeError, IndexError, TypeError, ValueError, AssertionError) as error:  # torch 2.6 asserts in stack
            shapes = ", ".join(
                f"{operand}: {_shape(meta)}" for operand, meta in zip(self.operands, operands, strict=True)
            )
            raise ShapeError(
                f"'{self}' cannot be computed.",
                found=shapes,
                expected=str(error).splitlines()[0].rstrip("."),
                fix="use a transform that fits these shapes",
            ) from error

    def devices(self, devices: Mapping[Address, torch.device]) -> set[torch.device]:
        """Ask the transform where its operands meet."""
        found = set[torch.device]().union(*(operand.devices(devices) for operand in self.operands))
        return self.transform.device(list(found))

    def substitute(self, definitions: Mapping[Address, Expression]) -> Expression:
        """Rebuild with the operands replaced."""
        first, *rest = (operand.substitute(definitions) for operand in self.operands)
        return first.apply(self.transform, *rest)


class _Hole(Expression):
    """Where an operand stands in the text of a transform."""

    mark = "\0"

    def __init__(self, operand: Expression) -> None:
        self.operand = operand

    def text(self, binds: int = 0) -> str:
        bare = not isinstance(self.operand, Apply) or self.operand.transform.binds >= binds
        return self.mark if bare else f"({self.mark})"


_BRACKET = re.compile(r"[(\[\])]")


def as_expression(value: Any) -> Expression:
    """Return `value`, which has to be an expression."""
    if isinstance(value, Expression):
        return value
    raise KindError(
        "This cannot stand here in an expression.",
        found=type(value).__name__,
        expected="an expression, such as m.encoder.weight.T",
        fix="register constants as buffers of the model and use their address; numbers only multiply and divide",
    )


def _too_large(found: str) -> ParseError:
    return ParseError(
        "The expression is too large.",
        found=found,
        expected=f"fewer than {MOST_NODES} transforms and addresses, {MOST_DEPTH} brackets",
        fix="name the parts: tie helper parameters first",
    )


def _reapply(expression: Expression, transforms: Sequence[Transform]) -> Expression:
    for transform in transforms:
        expression = expression.apply(transform)
    return expression


def _shape(tensor: Tensor) -> str:
    return f"({', '.join(map(str, tensor.shape))})"


def _unknown(expression: object, name: str) -> TransformError:
    """Return the error for `expression.name`, which is no transform; it names the nearest one."""
    near = nearest(name, METHODS)
    return TransformError(
        f"'{short(name)}' is not a transform of the language.",
        found=f"{short(str(expression))}.{short(name)}",
        expected="one of the transforms in the documentation, such as .T, .reshape(...) or .exp()",
        fix=f"did you mean {near}?" if near else "read values from the model itself; an expression has none yet",
    )


def _answer(owner: type, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Return what a torch function gives for expressions; `owner` is their class.

    Raises:
        KindError: the function is no transform of the language, or a tensor is among its arguments.
    """
    name: str = function.__name__
    builder = FORMS.get(name) or getattr(owner, name, None)
    if builder is None:
        raise KindError(
            f"torch.{name} is not a transform of the language.",
            found=f"torch.{name}(...)",
            expected="one of the transforms in the documentation, such as .T or torch.cat",
            fix="compute it from parameters of its own: a parametrization, or a module",
        )
    for arg in args:
        _refuse_tensors(arg if isinstance(arg, list | tuple) else [arg])
    try:
        return builder(*args, **kwargs)
    except (TypeError, AttributeError) as error:
        if isinstance(error, TieError):
            raise
        raise KindError(
            f"torch.{name} cannot be applied to these arguments.",
            found=f"torch.{name}({', '.join([*(type(arg).__name__ for arg in args), *kwargs])})",
            expected="an expression first, then what the method of that name takes",
            fix="call the method, such as e.flip(0), or an operator, such as 2 * e",
        ) from error


def _refuse_tensors(args: Sequence[Any]) -> None:
    for arg in args:
        if isinstance(arg, Tensor):
            raise KindError(
                "A tensor cannot stand in an expression, which is pure data.",
                found=type(arg).__name__,
                expected="expressions, numbers, and lists of numbers",
                fix="register constants as buffers of the model and use their address",
            )
