"""Transforms that compute: constants times a tensor, sums, products, Kronecker products.

Owns: linear and bilinear arithmetic. Must not move entries about (`views.py`) or bend them (`pointwise.py`).
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tied.algebra.expression import Expression, as_expression
from tied.algebra.transform import PRODUCT, SUM, UNARY, Printable, Transform, spelled
from tied.errors import ParseError, short


@dataclass(frozen=True)
class Scale(Transform):
    """`c * x`, or `x / c` where `divide`; `c` is a finite number that is not a bool.

    Law: forward(x) == c * x, or x / c; exact (one rounding).
    """

    factor: int | float
    divide: bool = False

    sparse = True
    uniform = True

    @property
    def binds(self) -> int:
        """A leading minus binds more tightly than a product."""
        return UNARY if self.factor == -1 and not self.divide else PRODUCT

    def forward(self, *operands: Tensor) -> Tensor:
        """Return the scaled tensor."""
        return operands[0] / self.factor if self.divide else self.factor * operands[0]

    def adjoint(self, cotangent: Tensor, *operands: Tensor) -> tuple[Tensor, ...]:
        """Scale by the same constant: the map is symmetric."""
        return (self.forward(cotangent),)

    def right_inverse(self, value: Tensor, present: Tensor) -> Tensor:
        """Undo the constant; zero keeps what is there."""
        if self.divide:
            return value * self.factor
        return value / self.factor if self.factor else present

    def text(self, operands: Sequence[Printable]) -> str:
        """Print as `-x`, `c * x` or `x / c`."""
        if self.divide:
            return f"{operands[0].text(PRODUCT)} / {self.factor!r}"
        return ("-" if self.factor == -1 else f"{self.factor!r} * ") + operands[0].text(UNARY)

    def after(self, inner: Transform) -> Sequence[Transform] | None:
        """Merge with another constant where that is exact: one of the two is a sign."""
        if not isinstance(inner, Scale) or self.divide or inner.divide or -1 not in (self.factor, inner.factor):
            return None
        factor = self.factor * inner.factor
        if not factor:
            return None  # the sign of a zero would be lost
        return () if factor == 1 else (Scale(factor),)


@dataclass(frozen=True)
class ScaleBy(Transform):
    """`x * [1, -1, 1]`: times a constant written out as (nested) lists, broadcast as torch does.

    Law: forward(x) == x * torch.tensor(values); exact (one rounding).
    """

    values: tuple[Any, ...]

    sparse = True

    @property
    def binds(self) -> int:
        """As a product."""
        return PRODUCT

    def constant(self, like: Tensor) -> Tensor:
        """Return the constant with the dtype and device of `like`."""
        return torch.tensor(self.values, dtype=like.dtype, device=like.device)

    def forward(self, *operands: Tensor) -> Tensor:
        """Return the product."""
        return operands[0] * self.constant(operands[0])

    def adjoint(self, cotangent: Tensor, *operands: Tensor) -> tuple[Tensor, ...]:
        """Scale by the same constants, and sum where they were broadcast."""
        return ((cotangent * self.constant(cotangent)).sum_to_size(operands[0].shape),)

    def text(self, operands: Sequence[Printable]) -> str:
        """Print with the list written out."""
        return f"{operands[0].text(PRODUCT)} * {listed(self.values)}"


def number(value: Any) -> int | float:
    """Return a constant in its one form: a whole number is an int.

    Raises:
        ParseError: `value` is not a finite number.
    """
    is_number = not isinstance(value, bool) and isinstance(value, numbers.Real)
    try:
        real = float(value) if is_number else math.nan
    except OverflowError:
        real = math.inf
    if not math.isfinite(real):
        raise ParseError(
            "This is not a constant to multiply by.",
            found=str(real) if is_number else type(value).__name__,
            expected="a finite number",
            fix="write the number out, or register a buffer and use its address",
        )
    return int(real) if real.is_integer() and abs(real) <= 2**53 else real


def constants(values: Any) -> Any:
    """Return nested lists of constants as nested tuples.

    Raises:
        ParseError: an entry is not a finite number, or lists side by side have different lengths.
    """
    found = tuple(constants(value) if isinstance(value, list | tuple) else number(value) for value in values)
    if len({_lengths(value) for value in found}) > 1:
        raise ParseError(
            "These lists form no tensor.",
            found=short(listed(found)),
            expected="lists of equal length",
            fix="write every row out, as for torch.tensor",
        )
    return found


def _lengths(values: Any) -> tuple[int, ...]:
    if not isinstance(values, tuple):
        return ()
    return (len(values), *(_lengths(values[0]) if values else ()))


def listed(values: Any) -> str:
    """Print a nested tuple as nested lists."""
    return f"[{', '.join(map(listed, values))}]" if isinstance(values, tuple) else repr(values)


@dataclass(frozen=True)
class Add(Transform):
    """`x + y`, broadcast: a shared part and a private part.

    Law: forward(x, y) == x + y; exact.
    """

    @property
    def binds(self) -> int:
        """As a sum."""
        return SUM

    def forward(self, *operands: Tensor) -> Tensor:
        """Return the sum."""
        return operands[0] + operands[1]

    def adjoint(self, cotangent: Tensor, *operands: Tensor) -> tuple[Tensor, ...]:
        """Both operands get everything, summed where they were broadcast."""
        return tuple(cotangent.sum_to_size(operand.shape) for operand in operands)

    def text(self, operands: Sequence[Printable]) -> str:
        """Print as a sum, or as a difference where the second operand is a negative multiple."""
        first, second = operands[0].text(SUM), operands[1].text(PRODUCT)
        return f"{first} - {second[1:]}" if _is_negative(operands[1]) else f"{first} + {second}"


def _is_negative(expression: Printable) -> bool:
    transform = getattr(expression, "transform", None)
    return isinstance(transform, Scale) and transform.factor < 0 and not transform.divide


@dataclass(frozen=True)
class Multiply(Transform):
    """`x * y`, entry by entry, broadcast: a gain on a weight, or signs in a buffer.

    Law: forward(x, y) == x * y; exact.
    """

    bilinear = True

    @property
    def binds(self) -> int:
        """As a product."""
        return PRODUCT

    def forward(self, *operands: Tensor) -> Tensor:
        """Return the product."""
        return operands[0] * operands[1]

    def adjoint(self, cotangent: Tensor, *operands: Tensor) -> tuple[Tensor, ...]:
        """Each operand gets the cotangent times the other operand."""
        first, second = operands
        return (cotangent * second).sum_to_size(first.shape), (cotangent * first).sum_to_size(second.shape)

    def text(self, operands: Sequence[Printable]) -> str:
        """Print as a product."""
        return f"{operands[0].text(PRODUCT)} * {operands[1].text(UNARY)}"


@dataclass(frozen=True)
class Matmul(Transform):
    """`x @ y` of matrices, or batches of matrices: low rank, a shared basis.

    Law: forward(x, y) == x @ y; exact.
    """

    @property
    def binds(self) -> int:
        """As a product."""
        return PRODUCT

    def forward(self, *operands: Tensor) -> Tensor:
        """Return the matrix product."""
        return operands[0] @ operands[1]

    def infer(self, *operands: Tensor) -> Tensor:
        """Apply torch's shape rule; vectors are refused, since their products change rank."""
        if min(operand.dim() for operand in operands) < 2:
            raise RuntimeError("@ expects matrices; .unsqueeze(0) makes a row of a vector")
        return self.forward(*operands)

    def adjoint(self, cotangent: Tensor, *operands: Tensor) -> tuple[Tensor, ...]:
        """Multiply by the other factor, transposed."""
        first, second = operands
        return (cotangent @ second.mT).sum_to_size(first.shape), (first.mT @ cotangent).sum_to_size(second.shape)

    def text(self, operands: Sequence[Printable]) -> str:
        """Print as a product."""
        return f"{operands[0].text(PRODUCT)} @ {operands[1].text(UNARY)}"


@dataclass(frozen=True)
class Kron(Transform):
    """`kron(x, y)`: every entry of `x` times all of `y`.

    Law: forward(x, y) == torch.kron(x, y); exact.
    """

    def forward(self, *operands: Tensor) -> Tensor:
        """Return the Kronecker product; torch.kron refuses some strides (2.13), so both are made contiguous."""
        return torch.kron(operands[0].contiguous(), operands[1].contiguous())

    def adjoint(self, cotangent: Tensor, *operands: Tensor) -> tuple[Tensor, ...]:
        """Regroup the entries as (entries of x, entries of y), then multiply by the other factor."""
        first, second = operands
        rank = max(first.dim(), second.dim())
        outer, inner = ([1] * (rank - x.dim()) + list(x.shape) for x in operands)
        pairs = [size for pair in zip(outer, inner, strict=True) for size in pair]
        order = [*range(0, 2 * rank, 2), *range(1, 2 * rank, 2)]
        table = cotangent.reshape(pairs).permute(order).reshape(first.numel(), second.numel())
        return (table @ second.reshape(-1)).reshape(first.shape), (first.reshape(-1) @ table).reshape(second.shape)

    def text(self, operands: Sequence[Printable]) -> str:
        """Print as a function call."""
        return f"kron({operands[0].text(SUM)}, {operands[1].text(SUM)})"


# -- what builds them ---------------------------------------------------------------------------------


@spelled("kron")
def kron(first: Expression, second: Expression) -> Expression:
    """Make the expression `kron(first, second)`."""
    return Expression.apply(first, Kron(), second)


@spelled("+", "add")
def _add(first: Expression, second: Expression) -> Expression:
    return as_expression(first).apply(Add(), second)


@spelled("-", "sub")
def _subtract(first: Expression, second: Expression) -> Expression:
    return as_expression(first).apply(Add(), -as_expression(second))


@spelled("-e", "neg", "negative")
def _negative(expression: Expression) -> Expression:
    return expression.apply(Scale(-1))


@spelled("@", "matmul", "mm")
def _multiply_matrices(first: Expression, second: Expression) -> Expression:
    return first.apply(Matmul(), second)


@spelled("*", "mul")
def _multiply(expression: Expression, other: Any) -> Expression:
    """Multiply by a number, a list of constants, or another expression."""
    if isinstance(other, numbers.Real):
        return _scale(expression, other)
    if isinstance(other, list | tuple):
        return expression.apply(ScaleBy(constants(other)))
    return expression.apply(Multiply(), other)


@spelled("/", "div", "true_divide")
def _divide(expression: Expression, other: Any) -> Expression:
    if not isinstance(other, numbers.Real):
        raise ParseError(
            "Only numbers divide.",
            found=f"a division by {as_expression(other)}",
            expected="e / 3",
            fix="multiply by the reciprocal: e * other.reciprocal()",
        )
    return _scale(expression, other, divide=True)


def _scale(expression: Expression, value: numbers.Real, divide: bool = False) -> Expression:
    factor = number(value)
    if factor == 0 and divide:
        raise ParseError("Division by zero.", found=f"{expression} / 0", expected="e / 3", fix="0 * e is zero")
    return expression if factor == 1 else expression.apply(Scale(factor, divide))
