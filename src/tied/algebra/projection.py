"""Projection: the source that comes nearest to given values of its uses.

Owns: the adjoint and the use counts of whole expressions, the least-squares source, and the exact inverse.
Must not know modules. Read next: `binding/ledger.py`.

For uses theta_i = A_i phi, with every A_i*A_i diagonal, the minimiser of sum |theta_i - A_i phi|^2 is

    phi = (sum A_i* theta_i) / (sum A_i* A_i 1)        (entries that nobody reads keep their value)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from tied.algebra.address import Address, show_address
from tied.algebra.expression import Apply, Expression, Ref
from tied.errors import InverseError

Tensors = Mapping[Address, Tensor]


def adjoint(expression: Expression, cotangent: Tensor, tensors: Tensors) -> dict[Address, Tensor]:
    """Apply the transposed derivative of `expression` at `tensors` to `cotangent`, without autograd.

    Law: equals the gradient of <expression, cotangent> with respect to each source; float64: 1e-12 relative.

    Returns:
        For each source, a tensor of its shape.
    """
    if isinstance(expression, Ref):
        return {expression.address: cotangent}
    assert isinstance(expression, Apply)
    operands = [operand.value(tensors) for operand in expression.operands]
    total: dict[Address, Tensor] = {}
    parts = expression.transform.adjoint(cotangent, *operands)
    for operand, part in zip(expression.operands, parts, strict=True):
        for address, tensor in adjoint(operand, part, tensors).items():
            total[address] = total[address] + tensor if address in total else tensor
    return total


def counts(expression: Expression, tensors: Tensors, fixed: Collection[Address] = ()) -> dict[Address, Tensor]:
    """Return the diagonal of A*A for each source: how often each entry is used (times squared constants).

    Only for sparse expressions (`is_sparse`), where A*A is diagonal. `fixed` names the sources that are
    constants of the map: buffers that hold an index or signs.
    """
    ones = {a: t if a in fixed else torch.ones_like(t) for a, t in tensors.items()}
    found = adjoint(expression, expression.value(ones), tensors)
    return {address: tensor for address, tensor in found.items() if address not in fixed}


def is_sparse(expression: Expression, fixed: Collection[Address] = ()) -> bool:
    """Tell whether each entry of the value is a constant times at most one entry of one source."""
    if isinstance(expression, Ref):
        return True
    assert isinstance(expression, Apply)
    if expression.transform.bilinear:
        free = [operand for operand in expression.operands if not set(operand.sources()) <= set(fixed)]
        return len(free) <= 1 and all(is_sparse(operand, fixed) for operand in free)
    return expression.transform.sparse and all(is_sparse(operand, fixed) for operand in expression.operands)


def project(
    uses: Sequence[tuple[Expression, Tensor]], tensors: Tensors, fixed: Collection[Address] = ()
) -> dict[Address, Tensor]:
    """Return the sources nearest to the values of all uses, in the sense of least squares.

    Law: idempotent, and |theta - A phi|^2 = |theta - A phi*|^2 + |A (phi - phi*)|^2; float64: 1e-12 relative.

    Args:
        uses: Pairs of an expression and the value that its target has; each must be sparse.
        tensors: The present values of all sources; entries that no use reads keep theirs.
        fixed: Sources that are constants: index buffers, signs.

    Raises:
        InverseError: a use is not sparse, so that the nearest source has no closed form.

    Source: normal equations; for key and value heads this is the mean pooling of Ainslie et al. 2023 (GQA).
    """
    total: dict[Address, Tensor] = {}
    weight: dict[Address, Tensor] = {}
    for expression, value in uses:
        _need_sparse(expression, fixed)
        for sums, parts in ((total, adjoint(expression, value, tensors)), (weight, counts(expression, tensors, fixed))):
            for address, part in parts.items():
                if address not in fixed:
                    sums[address] = sums[address] + part if address in sums else part
    return {address: _divide(total[address], weight[address], tensors[address]) for address in total}


def _divide(total: Tensor, weight: Tensor, present: Tensor) -> Tensor:
    unread = weight == 0
    return torch.where(unread, present, total / torch.where(unread, torch.ones_like(weight), weight))


def _need_sparse(expression: Expression, fixed: Collection[Address]) -> None:
    if not is_sparse(expression, fixed):
        raise InverseError(
            f"The nearest source of '{expression}' has no closed form.",
            found="a sum, a product or a bend of parameters",
            expected="a transform that moves or scales entries",
            fix='keep the source: keep="source"',
        )


def invert(
    expression: Expression, value: Tensor, tensors: Tensors, fixed: Collection[Address] = ()
) -> dict[Address, Tensor]:
    """Return sources that give exactly `value`, nearest to the present ones.

    Law: expression.value(invert(expression, v)) == v, up to the rounding of constants and bends.

    Raises:
        InverseError: no source gives `value`, or the expression has no inverse.
    """
    found = _pull(expression, value, tensors, fixed)
    again = expression.value({**tensors, **found})
    if not agree(again, value, expression):
        gap = float((again - value).abs().max())
        raise InverseError(
            f"No value of {' and '.join(map(show_address, found)) or 'the source'} gives this target.",
            found=f"the nearest misses it by {gap:.3g} (largest entry)",
            expected=f"a value of the form {expression}",
            fix='take the nearest one with keep="mean", or untie the target first',
        )
    return found


def _pull(expression: Expression, value: Tensor, tensors: Tensors, fixed: Collection[Address]) -> dict[Address, Tensor]:
    if is_sparse(expression, fixed):
        return project([(expression, value)], tensors, fixed)
    assert isinstance(expression, Apply)
    transform, operands = expression.transform, [operand.value(tensors) for operand in expression.operands]
    if len(operands) == 1:
        return _pull(expression.operands[0], transform.right_inverse(value, operands[0]), tensors, fixed)
    if not transform.sparse:
        _need_sparse(expression, fixed)
    found: dict[Address, Tensor] = {}
    for operand, part in zip(expression.operands, transform.adjoint(value, *operands), strict=True):
        found.update(_pull(operand, part, {**tensors, **found}, fixed))
    return found


def agree(first: Tensor, second: Tensor, expression: Expression) -> bool:
    """Tell whether two values of `expression` are the same: bit for bit for pure moves, else up to rounding."""
    if first.shape != second.shape:
        return False
    if torch.equal(first, second) or not (first.is_floating_point() or first.is_complex()):
        return torch.equal(first, second)
    exact = all(_is_exact(node) for node in expression.nodes())
    rtol = 0 if exact else 64 * torch.finfo(first.dtype).eps
    return torch.allclose(first, second.to(first.dtype), rtol=rtol, atol=0, equal_nan=True)


def _is_exact(node: Expression) -> bool:
    return not isinstance(node, Apply) or node.transform.exact
