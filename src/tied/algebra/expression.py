"""Expressions: what a target equals, as a value.

Owns: the tree (an address, or a transform of expressions), its canonical form, its value, and the torch
method names that build it. Must not hold tensors or know modules. Read next: `parser.py`, the text form.

    >>> weight = ref("encoder.weight")
    >>> print(2 * weight.T[:10])
    2 * encoder.weight.T[:10]
    >>> weight.T.T == weight
    True
"""

from __future__ import annotations

import numbers
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from tied.algebra.address import Address, show_address
from tied.algebra.arithmetic import Add, Matmul, Multiply, Scale, ScaleBy, constants, number
from tied.algebra.assembly import Gather
from tied.algebra.pointwise import Cast, Detach, Place
from tied.algebra.torch_functions import answer, methods, unknown
from tied.algebra.transform import MOST_DEPTH, Transform
from tied.algebra.views import index, view
from tied.errors import KindError, ParseError, ShapeError, short

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
        from tied.algebra.parser import parse  # the parser builds expressions, so it comes later

        return parse, (str(self),)

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
        operands = tuple(_expression(operand) for operand in (self, *others))
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
        return self.apply(Add(), other)

    def __sub__(self, other: Expression) -> Expression:
        """Return the difference."""
        return self.apply(Add(), -_expression(other))

    def __neg__(self) -> Expression:
        """Return the negative."""
        return self.apply(Scale(-1))

    def __mul__(self, other: Any) -> Expression:
        """Return the product with a number, a list of constants, or another expression."""
        if isinstance(other, numbers.Real):
            return self._scale(other)
        if isinstance(other, list | tuple):
            return self.apply(ScaleBy(constants(other)))
        return self.apply(Multiply(), other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Expression:
        """Return the quotient by a number."""
        if not isinstance(other, numbers.Real):
            raise ParseError(
                "Only numbers divide.",
                found=f"a division by {_expression(other)}",
                expected="e / 3",
                fix="multiply by the reciprocal: e * other.reciprocal()",
            )
        return self._scale(other, divide=True)

    def _scale(self, value: numbers.Real, divide: bool = False) -> Expression:
        factor = number(value)
        if factor == 0 and divide:
            raise ParseError("Division by zero.", found=f"{self} / 0", expected="e / 3", fix="0 * e is zero")
        return self if factor == 1 else self.apply(Scale(factor, divide))

    def __matmul__(self, other: Expression) -> Expression:
        """Return the matrix product."""
        return self.apply(Matmul(), other)

    __array_ufunc__ = None  # NumPy's arrays leave the answer to us

    def __radd__(self, other: object) -> Expression:
        """Refuse what is no expression on the left; the message says why."""
        return _expression(other) + self

    __rsub__ = __rmatmul__ = __rtruediv__ = __radd__

    def __getitem__(self, key: Any) -> Expression:
        """Return a slice, or a gather where `key` is an expression: the address of an index buffer."""
        if isinstance(key, Expression | Tensor):
            return self.apply(Gather(), _expression(key))
        return self.apply(index(key))

    def __iter__(self) -> Iterator[Expression]:
        """Refuse: an expression has no known length."""
        raise TypeError(f"'{self}' is an expression; select from it with slices")

    @property
    def T(self) -> Expression:
        """The matrix transposed."""
        return self.apply(view("T"))

    @property
    def mT(self) -> Expression:
        """The last two axes exchanged."""
        return self.apply(view("mT"))

    def to(self, target: torch.dtype | torch.device | str) -> Expression:
        """Return the expression in another dtype or on another device."""
        if isinstance(target, torch.dtype):
            return self.apply(Cast(target))
        try:
            return self.apply(Place(str(torch.device(target))))
        except (RuntimeError, TypeError) as error:
            raise ParseError(
                ".to was called with neither a dtype nor a device.",
                found=short(f".to({target!r})"),
                expected='a dtype such as float16, or a device such as "cuda:0"',
                fix="see torch.Tensor.to",
            ) from error

    def detach(self) -> Expression:
        """Return the value without a gradient."""
        return self.apply(Detach())

    def __getattr__(self, name: str) -> Any:
        """Refuse what is no transform."""
        if name.startswith("_"):
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")
        raise unknown(self, name)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Expression:
        """Answer torch's functions: `torch.cat([a, b])`, `torch.exp(a)`, `torch.kron(a, b)`."""
        return answer(cls, func, args, kwargs or {})


for _name, _method in methods():
    setattr(Expression, _name, _method)


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


def ref(address: str | Address) -> Ref:
    """Make the expression that reads one address.

    >>> ref("layers[0].weight") == ref("layers.0.weight") == ref(("layers", "0", "weight"))
    True
    """
    if isinstance(address, tuple):
        return Ref(address)
    from tied.algebra.parser import parse_address  # the parser builds expressions, so it comes later

    return Ref(parse_address(address))


def _expression(value: Any) -> Expression:
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
