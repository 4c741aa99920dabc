"""Transforms that bend, cut or move a tensor entry by entry: exp, softplus, ..., detach, to.

Owns: one row per bijection, with its derivative, its inverse and its range.
Must not mix entries. Read next: `expression.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from tied.algebra.expression import Expression
from tied.algebra.transform import POSTFIX, Printable, Transform, spelled
from tied.errors import InverseError, ParseError, short


class Row(NamedTuple):
    """What the language knows about one bijection."""

    forward: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor, Tensor], Tensor]  # (value, present operand) -> operand
    inside: Callable[[Tensor], Tensor]  # is an entry in the range
    range: str


def _unsoftplus(y: Tensor, present: Tensor) -> Tensor:
    return torch.where(y > 20, y, y + torch.log(-torch.expm1(-y)))


ROWS: dict[str, Row] = {
    "exp": Row(torch.exp, torch.exp, lambda y, _: y.log(), lambda y: y > 0, "values above 0"),
    "softplus": Row(functional.softplus, torch.sigmoid, _unsoftplus, lambda y: y > 0, "values above 0"),
    "square": Row(
        torch.square,
        lambda x: 2 * x,
        lambda y, present: y.sqrt().copysign(present),
        lambda y: y >= 0,
        "values of 0 and above",
    ),
    "sigmoid": Row(
        torch.sigmoid,
        lambda x: torch.sigmoid(x) * torch.sigmoid(-x),
        lambda y, _: y.logit(),
        lambda y: (y > 0) & (y < 1),
        "values between 0 and 1",
    ),
    "reciprocal": Row(
        torch.reciprocal,
        lambda x: -torch.reciprocal(x * x),
        lambda y, _: y.reciprocal(),
        lambda y: y != 0,
        "values other than 0",
    ),
}


@dataclass(frozen=True)
class Pointwise(Transform):
    """A bijection applied to every entry: `x.exp()`, `.softplus()`, `.square()`, `.sigmoid()`, `.reciprocal()`.

    Law: forward(right_inverse(y)) == y for y in the range, up to the rounding of the operand. Entries that
    give their value already stay as they are; `square` keeps the present signs.
    """

    name: str

    def forward(self, *operands: Tensor) -> Tensor:
        """Return the bent tensor."""
        return ROWS[self.name].forward(operands[0])

    def adjoint(self, cotangent: Tensor, *operands: Tensor) -> tuple[Tensor, ...]:
        """Multiply by the derivative."""
        return (cotangent * ROWS[self.name].derivative(operands[0]),)

    def right_inverse(self, value: Tensor, present: Tensor) -> Tensor:
        """Return the operand; refuse values outside the range."""
        row = ROWS[self.name]
        kept = self.forward(present) == value
        outside = int((~(row.inside(value) | kept)).sum())
        if outside:
            raise InverseError(
                f".{self.name}() never gives some of these values.",
                found=f"{outside} of {value.numel()} entries outside the range",
                expected=row.range,
                fix="correct the values (clamp them), or untie the target first",
            )
        return torch.where(kept, present, row.inverse(value, present))

    def text(self, operands: Sequence[Printable]) -> str:
        """Print as a method call."""
        return f"{operands[0].text(POSTFIX)}.{self.name}()"


@dataclass(frozen=True)
class Detach(Transform):
    """`x.detach()`: the value, without a gradient.

    Law: forward(x) == x, and no gradient reaches x; exact.
    """

    exact = True

    @property
    def aliases(self) -> bool:
        """The memory is the operand's."""
        return True

    def forward(self, *operands: Tensor) -> Tensor:
        """Return the value, cut from the graph."""
        return operands[0].detach()

    def adjoint(self, cotangent: Tensor, *operands: Tensor) -> tuple[Tensor, ...]:
        """Give nothing back."""
        return (torch.zeros_like(operands[0]),)

    def right_inverse(self, value: Tensor, present: Tensor) -> Tensor:
        """Return the value itself."""
        return value

    def text(self, operands: Sequence[Printable]) -> str:
        """Print as a method call."""
        return f"{operands[0].text(POSTFIX)}.detach()"

    def after(self, inner: Transform) -> Sequence[Transform] | None:
        """Cut once."""
        return (self,) if inner == self else None


@dataclass(frozen=True)
class Cast(Transform):
    """`x.to(dtype)`.

    Law: forward(x) == x.to(dtype); linear up to the rounding of `dtype`.
    """

    dtype: torch.dtype

    sparse = True

    def forward(self, *operands: Tensor) -> Tensor:
        """Return the tensor in the dtype."""
        return operands[0].to(self.dtype)

    def adjoint(self, cotangent: Tensor, *operands: Tensor) -> tuple[Tensor, ...]:
        """Cast back."""
        return (cotangent.to(operands[0].dtype),)

    def right_inverse(self, value: Tensor, present: Tensor) -> Tensor:
        """Cast back."""
        return value.to(present.dtype)

    def text(self, operands: Sequence[Printable]) -> str:
        """Print as a method call with the dtype's own name."""
        return f"{operands[0].text(POSTFIX)}.to({str(self.dtype).removeprefix('torch.')})"

    def after(self, inner: Transform) -> Sequence[Transform] | None:
        """Cast once."""
        return (self,) if inner == self else None


@dataclass(frozen=True)
class Place(Transform):
    """`x.to("cuda:0")`.

    Law: forward(x) == x.to(device); exact.
    """

    target: str

    sparse = True
    exact = True

    def forward(self, *operands: Tensor) -> Tensor:
        """Return the tensor on the device."""
        return operands[0].to(self.target)

    def infer(self, *operands: Tensor) -> Tensor:
        """Shape and dtype stay."""
        return operands[0]

    def device(self, devices: Sequence[torch.device]) -> set[torch.device]:
        """Bring whatever comes to one device; an index left out means the first."""
        device = torch.device(self.target)
        has_number = ":" in self.target or device.type in ("cpu", "meta")
        return {device if has_number else torch.device(device.type, 0)}

    def adjoint(self, cotangent: Tensor, *operands: Tensor) -> tuple[Tensor, ...]:
        """Move back."""
        return (cotangent.to(operands[0].device),)

    def right_inverse(self, value: Tensor, present: Tensor) -> Tensor:
        """Move back."""
        return value.to(present.device)

    def text(self, operands: Sequence[Printable]) -> str:
        """Print as a method call with the device's name in quotes."""
        return f'{operands[0].text(POSTFIX)}.to("{self.target}")'

    def after(self, inner: Transform) -> Sequence[Transform] | None:
        """Move once."""
        return (self,) if inner == self else None


# -- what builds them ---------------------------------------------------------------------------------


def _method(name: str) -> Callable[[Expression], Expression]:
    def method(expression: Expression) -> Expression:
        return expression.apply(Pointwise(name))

    method.__name__, method.__doc__ = name, f"Return `.{name}()` of an expression, entry by entry."
    return method


for _name in ROWS:
    spelled(_name)(_method(_name))
spelled("special_expit")(_method("sigmoid"))


@spelled("detach")
def _detach(expression: Expression) -> Expression:
    """Return the value without a gradient."""
    return expression.apply(Detach())


@spelled("to")
def _to(expression: Expression, target: torch.dtype | torch.device | str) -> Expression:
    """Return the expression in another dtype or on another device."""
    if isinstance(target, torch.dtype):
        return expression.apply(Cast(target))
    try:
        return expression.apply(Place(str(torch.device(target))))
    except (RuntimeError, TypeError) as error:
        raise ParseError(
            ".to was called with neither a dtype nor a device.",
            found=short(f".to({target!r})"),
            expected='a dtype such as float16, or a device such as "cuda:0"',
            fix="see torch.Tensor.to",
        ) from error
