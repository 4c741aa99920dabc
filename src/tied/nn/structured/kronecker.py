"""Matrices that are Kronecker products of two small ones.

Owns: `KroneckerLinear`. Read next: `broadcast.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from tied.errors import ShapeError, during, short
from tied.nn.init import draw, draw_with_variance
from tied.nn.input_checks import is_size
from tied.nn.structured.structured_linear import Options, StructuredLinear

Pair = tuple[int, int]


class KroneckerLinear(StructuredLinear):
    """A linear layer whose matrix is a Kronecker product.

    Law: `weight == torch.kron(left, right)`: block `(i, j)` of the matrix is `left[i, j] * right`.

    The input is read as a matrix X of shape `(left in, right in)`, and the output is `left @ X @ right.T`.

    Algorithms: `"factors"`, two small matrix products in the cheaper order; `"dense"` builds the matrix.

    Shapes:
        left: `(out_factors[0], in_factors[0])`; right: `(out_factors[1], in_factors[1])`.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        in_factors: Two sizes whose product is `in_features`; the most nearly equal ones where not given.
        out_factors: Two sizes whose product is `out_features`; the most nearly equal ones where not given.
        bias, algorithm, device, dtype: As in `StructuredLinear`.

    Raises:
        ShapeError: factors do not multiply to their width; or none were given and a width is prime.

    Example:
        >>> layer = KroneckerLinear(784, 256)
        >>> layer.left.shape, layer.right.shape
        (torch.Size([16, 28]), torch.Size([16, 28]))

    Source:
        Zhou et al. 2015, Compression of fully-connected layers by Kronecker products, arXiv:1507.05775; Van Loan
        2000, The ubiquitous Kronecker product, J. Comput. Appl. Math. 123.
    """

    left: nn.Parameter
    right: nn.Parameter
    fast = "factors"
    shown = ("in_factors", "out_factors")

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        in_factors: Pair | None = None,
        out_factors: Pair | None = None,
        **options: Unpack[Options],
    ) -> None:
        with during(f"KroneckerLinear({in_features!r}, {out_features!r})"):
            self.in_factors, self.out_factors = in_factors, out_factors
            super().__init__(in_features, out_features, **options)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the two factors."""
        self.in_factors = _factors("in", self.in_features, self.in_factors)
        self.out_factors = _factors("out", self.out_features, self.out_factors)
        left, right = zip(self.out_factors, self.in_factors, strict=True)
        return {"left": left, "right": right}

    def reset_parameters(self) -> None:
        """Draw both factors uniformly, so that their products have the variance of `nn.Linear`'s entries."""
        for factor in (self.left, self.right):
            draw_with_variance(factor, 1 / (math.sqrt(3) * factor.shape[1]))
        draw(self.bias, self.in_features)

    def build(self) -> Tensor:
        """Multiply each entry with each."""
        return torch.kron(self.left, self.right)

    def multiply(self, input: Tensor) -> Tensor:
        """Multiply with both factors, first with the one that leaves less to do."""
        square = input.unflatten(-1, (self.left.shape[1], self.right.shape[1]))
        if self._left_first():
            return (self.left @ square @ self.right.mT).flatten(-2)
        return (self.left @ (square @ self.right.mT)).flatten(-2)

    def _left_first(self) -> bool:
        (left_out, left_in), (right_out, right_in) = self.left.shape, self.right.shape
        return left_out * right_in * (left_in + right_out) < left_in * right_out * (right_in + left_out)

    def pays(self) -> bool:
        """Compare with the measured crossover."""
        return self.in_features * self.out_features >= 128 * 128


def _factors(side: str, width: int, given: Pair | None) -> Pair:
    if given is None:
        return _balanced(side, width)
    pair = tuple(given) if isinstance(given, Sequence) else (given,)  # pyright: ignore[reportUnnecessaryIsInstance]
    if len(pair) != 2 or not all(is_size(each) for each in pair) or math.prod(pair) != width:
        raise ShapeError(
            f"The factors do not multiply to {side}_features.",
            found=short(f"{side}_factors={given!r} for {side}_features={width}"),
            expected=f"two positive integers whose product is {width}",
            fix=f"leave {side}_factors out for the most nearly equal ones",
        )
    return pair


def _balanced(side: str, width: int) -> Pair:
    small = max(each for each in range(1, math.isqrt(width) + 1) if width % each == 0)
    if small == 1:
        raise ShapeError(
            f"{side}_features is no product of two smaller sizes, so there is nothing to share.",
            found=f"{side}_features={width}",
            expected="a width such as 784 = 28 · 28",
            fix=f"pad to {width + 1}, or say {side}_factors=(1, {width})",
        )
    return small, width // small
