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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tied.algebra.address import Address, show_address
from tied.algebra.arithmetic import Add, Kron, Matmul, Multiply, Scale, ScaleBy, constants, number
from tied.algebra.assembly import Gather, cat, stack
from tied.algebra.pointwise import Cast, Detach, Place, Pointwise
from tied.algebra.transform import Transform
from tied.algebra.views import index, view
from tied.errors import KindError, ParseError, ShapeError

MOST_NODES = 256  # a longer expression is a mistake, and deep trees exhaust Python's stack
Read = Callable[[], Tensor]


class Expression:
    """What a target equals: an address, or a transform of other expressions.

    Immutable, hashable pure data in canonical form: equal text, equal value. Everything that torch tensors
    answer to among the transforms of the language works here and gives another expression.
    """

    __module__ = "tied"

    # -- what it is ---------------------------------------------------------------------------------

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
        if sum(1 for operand in operands for _ in operand.nodes()) >= MOST_NODES:
            raise ParseError(
                "The expression is too long.",
                found=f"more than {MOST_NODES} transforms and addresses",
                expected=f"at most {MOST_NODES}",
                fix="name the parts: tie helper parameters first",
            )
        if len(operands) == 1 and isinstance(self, Apply) and len(self.operands) == 1:
            shorter = transform.after(self.transform)
            if shorter is not None:
                return _reapply(self.operands[0], shorter)
        return Apply(transform, operands)

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
                found=f"a division by {other}",
                expected="e / 3",
                fix="multiply by the reciprocal: e * other.reciprocal()",
            )
        return self._scale(other, divide=True)

    def _scale(self, value: numbers.Real, divide: bool = False) -> Expression:
        factor = number(value)
        if factor == 0 and divide:
            raise ParseError("Division by zero.", found=f"{self} / 0", expected="another number", fix="check it")
        return self if factor == 1 else self.apply(Scale(factor, divide))

    def __matmul__(self, other: Expression) -> Expression:
        """Return the matrix product."""
        return self.apply(Matmul(), other)

    def __radd__(self, other: object) -> Expression:
        """Refuse what is no expression on the left; the message says why."""
        return _expression(other) + self

    __rsub__ = __rmatmul__ = __rtruediv__ = __radd__

    def __getitem__(self, key: Any) -> Expression:
        """Return a slice, or a gather where `key` is an expression: the address of an index buffer."""
        return self.apply(Gather(), key) if isinstance(key, Expression) else self.apply(index(key))

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
        except RuntimeError as error:
            raise ParseError(
                ".to was called with neither a dtype nor a device.",
                found=f".to({target!r})",
                expected='a dtype such as float16, or a device such as "cuda:0"',
                fix="see torch.Tensor.to",
            ) from error

    def detach(self) -> Expression:
        """Return the value without a gradient."""
        return self.apply(Detach())

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Expression:
        """Answer torch's functions: `torch.cat([a, b])`, `torch.exp(a)`, `torch.kron(a, b)`."""
        name: str = func.__name__
        name = _ALIASES.get(name, name)
        builder = _FUNCTIONS.get(name) or getattr(cls, name, None)
        if builder is None:
            raise KindError(
                f"torch.{name} is not a transform of the language.",
                found=f"torch.{name}(...)",
                expected="one of the transforms in the documentation, such as .T or torch.cat",
                fix="compute it from parameters of its own: a parametrization, or a module",
            )
        for arg in args:
            for each in arg if isinstance(arg, list | tuple) else (arg,):
                if isinstance(each, Tensor):
                    _expression(each)  # raises: constants must be data
        return builder(*args, **(kwargs or {}))


def _view_method(name: str) -> Callable[..., Expression]:
    def method(self: Expression, *args: Any, **kwargs: Any) -> Expression:
        return self.apply(view(name, *args, **kwargs))

    return method


def _pointwise_method(name: str) -> Callable[..., Expression]:
    def method(self: Expression) -> Expression:
        return self.apply(Pointwise(name))

    return method


def _install_methods() -> None:
    views = "t transpose permute reshape view flatten unflatten squeeze unsqueeze expand repeat repeat_interleave"
    for name in [*views.split(), "flip", "roll", "narrow"]:
        method = _view_method(name)
        method.__name__, method.__doc__ = name, f"Return `.{name}(...)` of this expression, as torch does."
        setattr(Expression, name, method)
    for name in ("exp", "softplus", "square", "sigmoid", "reciprocal"):
        method = _pointwise_method(name)
        method.__name__, method.__doc__ = name, f"Return `.{name}()` of this expression, entry by entry."
        setattr(Expression, name, method)


_install_methods()


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
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
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
        "Only addresses, transforms and numbers can stand in an expression.",
        found=type(value).__name__,
        expected="an expression, such as m.encoder.weight.T",
        fix="register constants as buffers of the model and use their address",
    )


def _reapply(expression: Expression, transforms: Sequence[Transform]) -> Expression:
    for transform in transforms:
        expression = expression.apply(transform)
    return expression


def _shape(tensor: Tensor) -> str:
    return f"({', '.join(map(str, tensor.shape))})"


_FUNCTIONS: dict[str, Any] = {
    "cat": cat,
    "concat": cat,
    "stack": stack,
    "kron": lambda first, second: _expression(first).apply(Kron(), second),
}
_ALIASES = {
    "add": "__add__",
    "sub": "__sub__",
    "mul": "__mul__",
    "div": "__truediv__",
    "true_divide": "__truediv__",
    "matmul": "__matmul__",
    "mm": "__matmul__",
    "neg": "__neg__",
    "negative": "__neg__",
    "expit": "sigmoid",
}
