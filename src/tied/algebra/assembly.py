"""Transforms that assemble one tensor from several, or pick its entries by an index: cat, stack, gather.

Owns: the many-operand moves of entries. Must not do arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tied.algebra.expression import Expression, as_expression
from tied.algebra.transform import POSTFIX, SUM, Printable, Transform, spelled
from tied.algebra.views import index
from tied.errors import DeviceError, ParseError


@dataclass(frozen=True)
class Join(Transform):
    """`cat([x, y, ...], dim)`, or `stack` where `new_axis`.

    Law: forward(*xs) == torch.cat(xs, dim) or torch.stack(xs, dim); exact.
    """

    dim: int = 0
    new_axis: bool = False

    sparse = True
    exact = True

    def forward(self, *operands: Tensor) -> Tensor:
        """Return the joined tensor."""
        return torch.stack(operands, self.dim) if self.new_axis else torch.cat(operands, self.dim)

    def adjoint(self, cotangent: Tensor, *operands: Tensor) -> tuple[Tensor, ...]:
        """Cut the cotangent into the pieces that were joined."""
        if self.new_axis:
            return cotangent.unbind(self.dim)
        return cotangent.split([operand.shape[self.dim] for operand in operands], self.dim)

    def text(self, operands: Sequence[Printable]) -> str:
        """Print as a function call."""
        name = "stack" if self.new_axis else "cat"
        return f"{name}([{', '.join(operand.text(SUM) for operand in operands)}], {self.dim})"


def _join(expressions: Sequence[Expression], transform: Join) -> Expression:
    if type(transform.dim) is not int or not isinstance(expressions, list | tuple):
        raise ParseError(
            "Expressions are joined as in torch.",
            found=f"{type(expressions).__name__}, dim {transform.dim!r}",
            expected="a list of expressions, and a whole number",
            fix="write cat([a.w, b.w], 0), or tied.cat([a, b], 0)",
        )
    if not expressions:
        raise ParseError(
            "Nothing to join.", found="an empty list", expected="at least one expression", fix="list the parts"
        )
    first, *rest = expressions
    return Expression.apply(first, transform, *rest)


@spelled("cat", "concat", "concatenate")
def cat(expressions: Sequence[Expression], dim: int = 0) -> Expression:
    """Make the expression `cat([...], dim)`: the parts one after the other along an axis that they have."""
    return _join(expressions, Join(dim))


@spelled("stack")
def stack(expressions: Sequence[Expression], dim: int = 0) -> Expression:
    """Make the expression `stack([...], dim)`: the parts side by side along a new axis."""
    return _join(expressions, Join(dim, new_axis=True))


@dataclass(frozen=True)
class Gather(Transform):
    """`theta[index]`: entries of `theta` along its first axis, chosen by an integer tensor; -1 is a zero.

    Law: forward(theta, index) == theta[index], zero where index == -1; exact. The result has the shape
    `index.shape + theta.shape[1:]`. An index that is too large, or below -1, is an error of torch.

    Source: Chen et al. 2015 (HashedNets), arXiv:1504.04788, eq. 3; Ravanbakhsh et al. 2017, arXiv:1702.08389.
    """

    bilinear = True
    exact = True

    def forward(self, *operands: Tensor) -> Tensor:
        """Put one zero before `theta`, so that -1 points at it and every other mistake is out of range."""
        theta, index = operands
        if index.is_meta and not theta.is_meta:
            raise _index_without_values(theta)
        padded = torch.cat([theta.new_zeros(1, *theta.shape[1:]), theta])
        return padded.index_select(0, self._places(index)).reshape((*index.shape, *theta.shape[1:]))

    @staticmethod
    def _places(index: Tensor) -> Tensor:
        return index.reshape(-1).long() + 1

    def infer(self, *operands: Tensor) -> Tensor:
        """Apply the shape rule; the index must hold whole numbers."""
        theta, index = operands
        if index.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
            raise RuntimeError(f"an index holds whole numbers, this one holds {index.dtype}")
        if theta.dim() == 0:
            raise RuntimeError("a single number cannot be indexed")
        return self.forward(theta, index)

    def adjoint(self, cotangent: Tensor, *operands: Tensor) -> tuple[Tensor, ...]:
        """Add every entry up where it was taken from; the index itself has no derivative."""
        theta, index = operands
        padded = cotangent.new_zeros(theta.shape[0] + 1, *theta.shape[1:])
        rows = cotangent.reshape(index.numel(), *theta.shape[1:])
        return padded.index_add(0, self._places(index), rows)[1:], torch.zeros_like(index)

    def text(self, operands: Sequence[Printable]) -> str:
        """Print as a subscript."""
        return f"{operands[0].text(POSTFIX)}[{operands[1].text(SUM)}]"


def _index_without_values(theta: Tensor) -> DeviceError:
    """Word what torch 2.13 does not: on a CPU it takes entries by an index on meta, from memory that holds anything."""
    return DeviceError(
        "The index of a gather is on the meta device, which has no values.",
        found=f"an index on meta, and entries on {theta.device}",
        expected="both on one device",
        fix="load or copy the index buffer too: it lies beside the Parameters in the state dict",
    )


@spelled("[]")
def _select(expression: Expression, key: Any) -> Expression:
    """Select slices, or gather where `key` is an expression: the address of an index buffer."""
    if isinstance(key, Expression | Tensor):
        return expression.apply(Gather(), as_expression(key))
    return expression.apply(index(key))
