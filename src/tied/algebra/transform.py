"""What a transform is: a value that maps tensors to a tensor.

Owns: the protocol that every transform follows, the names that the language knows, and the table of what builds them.
Must not hold tensors: a transform is frozen, hashable, pure data. Read next: `expression.py`, then `views.py`, the
largest family.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor

from tied.errors import InverseError

SUM, PRODUCT, UNARY, POSTFIX = 1, 2, 3, 4  # how tightly a printed form binds

_VIEWS = "T mT t transpose permute reshape view flatten unflatten squeeze unsqueeze expand repeat repeat_interleave"
_OTHERS = "flip roll narrow exp softplus square sigmoid reciprocal detach to"
MOST_DEPTH = 64  # brackets inside each other that a text may have; deeper ones exhaust Python's stack

METHODS = frozenset([*_VIEWS.split(), *_OTHERS.split()])
ATTRIBUTES = frozenset(["T", "mT"])  # methods that are read, not called
OPERATORS = ("+", "-", "-e", "*", "/", "@", "[]")
FUNCTIONS = ("cat", "stack", "kron")

FORMS: dict[str, Callable[..., Any]] = {}
"""What builds the expression of each spelling of the language: `FORMS["+"](a, b)`, `FORMS["flip"](a, 0)`.

Filled by the files that hold the transforms, all of which `tied.algebra` imports.
"""
Form = TypeVar("Form", bound=Callable[..., Any])


def spelled(*spellings: str) -> Callable[[Form], Form]:
    """Enter a function in `FORMS` under its spellings: of the language, and of `torch` where those differ."""

    def enter(form: Form) -> Form:
        FORMS.update(dict.fromkeys(spellings, form))
        return form

    return enter


class Printable(Protocol):
    """What a transform knows of its operands when it prints itself."""

    def text(self, binds: int = 0) -> str:
        """Print, in parentheses where something that binds as tightly as `binds` is asked for."""
        ...


class Transform(ABC):
    """A function of one or more tensors, as a value.

    Subclasses are frozen dataclasses that give `forward`, `adjoint` and `text`.

    Attributes:
        sparse: Each entry of the result reads at most one entry of one operand, times a constant. Then the
            map A is linear and A*A is diagonal (the use counts), so the nearest source has a closed form.
        bilinear: Linear in each of two operands, and sparse in one of them while the other is fixed.
        exact: Moves entries without computing, so that values come out bit for bit.
        uniform: Multiplies every entry by one constant, and so commutes with moving entries about.
    """

    sparse: ClassVar[bool] = False
    bilinear: ClassVar[bool] = False
    exact: ClassVar[bool] = False
    uniform: ClassVar[bool] = False

    @property
    def binds(self) -> int:
        """How tightly the printed form binds."""
        return POSTFIX

    @property
    def aliases(self) -> bool:
        """Whether the result always shares the operand's memory, so that writes to it are writes to the operand."""
        return False

    @abstractmethod
    def forward(self, *operands: Tensor) -> Tensor:
        """Return the value. Differentiable; every operation is torch's own."""

    def function(self) -> Callable[..., Tensor]:
        """Return the fastest callable that does what `forward` does."""
        return self.forward

    def infer(self, *operands: Tensor) -> Tensor:
        """Return the value for tensors on the meta device: torch's own shape and dtype rule."""
        return self.forward(*operands)

    def device(self, devices: Sequence[torch.device]) -> set[torch.device]:
        """Return the device of the result as a set; more than one means that the operands do not meet."""
        return set(devices)

    @abstractmethod
    def adjoint(self, cotangent: Tensor, *operands: Tensor) -> tuple[Tensor, ...]:
        """Return, for each operand, the transposed derivative applied to `cotangent`; written by hand.

        Law: <forward(x), y> == <x, adjoint(y)> where the transform is linear (float64: 1e-12).
        """

    def right_inverse(self, value: Tensor, present: Tensor) -> Tensor:
        """Return the operand nearest to `present` that gives the value nearest to `value`.

        Law: forward(right_inverse(v, x)) == v for every v that some operand gives.
        Entries of the operand that the result never reads keep their `present` value.

        Raises:
            InverseError: the transform has no right inverse, or `value` lies outside its range.
        """
        if not self.sparse:
            raise InverseError(
                f"{type(self).__name__} has no right inverse.",
                found="a value for the result alone",
                expected="values for its sources",
                fix="give the sources, or untie the target first",
            )
        (total,) = self.adjoint(value, present)
        (weight,) = self.adjoint(self.forward(torch.ones_like(present)), present)
        found = settle(total, weight, present)
        (rest,) = self.adjoint(value - self.forward(found), present)
        return correct(found, rest, weight)

    @abstractmethod
    def text(self, operands: Sequence[Printable]) -> str:
        """Print the transform applied to `operands`; `parse` reads it back."""

    def after(self, inner: Transform) -> Sequence[Transform] | None:
        """Return shorter transforms, innermost first, that equal `self` after `inner`; None where there are none.

        Law: applying them one after the other gives bit for bit what `inner` and then `self` give.
        """
        return None


def settle(total: Tensor, weight: Tensor, present: Tensor) -> Tensor:
    """Return the weighted mean; where the weight is 0, what is there."""
    unread = weight == 0
    return torch.where(unread, present, total / torch.where(unread, 1, weight))


def correct(mean: Tensor, rest: Tensor, weight: Tensor) -> Tensor:
    """Add what a mean still misses, so that the mean of equal values is that value, bit for bit."""
    finite = torch.nan_to_num(rest, nan=0.0, posinf=0.0, neginf=0.0)
    return mean + settle(finite, weight, torch.zeros_like(mean))
