"""Projection: the source that comes nearest to given values of its uses.

Owns: the adjoint and the use counts of whole expressions, the least-squares source, and the exact inverse.
Must not know modules. Read next: `ledger.py`.

For uses theta_i = A_i phi, with every A_i*A_i diagonal, the minimiser of sum |theta_i - A_i phi|^2 is

    phi = (sum A_i* theta_i) / (sum A_i* A_i 1)        (entries that nobody reads keep their value)
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from tied.algebra.address import Address, show_address
from tied.algebra.expression import Apply, Expression, Ref
from tied.algebra.transform import correct, settle
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
    parts = expression.transform.adjoint(cotangent, *operands)
    return _added(
        adjoint(inner, part.to(operand.dtype), tensors)
        for inner, operand, part in zip(expression.operands, operands, parts, strict=True)
    )


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
    for expression, _ in uses:
        _need_sparse(expression, fixed)
    wide = {address: _widened(tensor) for address, tensor in tensors.items()}
    weight = _added(counts(expression, wide, fixed) for expression, _ in uses)
    total = _added(adjoint(expression, _widened(value), wide) for expression, value in uses)
    found = {address: settle(total[address], weight[address], wide[address]) for address in weight}
    now = {**wide, **found}
    rest = _added(adjoint(expression, _widened(value) - expression.value(now), wide) for expression, value in uses)
    return {a: correct(found[a], rest[a], weight[a]).to(tensors[a].dtype) for a in weight}


def _widened(tensor: Tensor) -> Tensor:
    """Return low-precision floats as float32: a mean of many of them would be rounded away."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32)) if tensor.is_floating_point() else tensor


def _added(parts: Iterable[Mapping[Address, Tensor]]) -> dict[Address, Tensor]:
    total: dict[Address, Tensor] = {}
    for each in parts:
        for address, part in each.items():
            total[address] = total[address] + part if address in total else part
    return total


def _need_sparse(expression: Expression, fixed: Collection[Address]) -> None:
    if not is_sparse(expression, fixed):
        raise InverseError(
            f"The nearest source of '{expression}' has no closed form.",
            found="a sum, a product or a bend of parameters",
            expected="a transform that moves or scales entries",
            fix='keep="source"; or, where a target was written to: write to its sources, or tie after initialization',
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
