"""Matrices that equal their transposes.

Owns: `SymmetricLinear`, and its packing. Read next: `gather.py`, for sharing without a closed form.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tied.nn.structured.layer import Options, StructuredLinear

if TYPE_CHECKING:
    from torch import nn
    from typing_extensions import Unpack


class SymmetricLinear(StructuredLinear):
    """A square linear layer whose matrix equals its transpose.

    Law: `weight == weight.T`, exact; `n (n + 1) / 2` parameters, each entry of the lower triangle once.

    Its Jacobian is symmetric, so that without a bias the layer is the gradient of `x @ weight @ x / 2`.

    The triangle is stored in a rectangle without gaps (Gustavson's *rectangular full packed* format), of which the
    matrix is four pieces: faster, and smaller, than an index of its entries.

    Shapes:
        theta: `(n + 1, n / 2)` for even n, `(n, (n + 1) / 2)` for odd n.

    Args:
        features: Width of input and output.
        bias, algorithm, device, dtype: As in `StructuredLinear`; the one algorithm is `"dense"`.

    Example:
        >>> layer = SymmetricLinear(4)
        >>> bool((layer.weight == layer.weight.T).all()), layer.theta.numel()
        (True, 10)

    Source:
        Gustavson et al. 2010, Rectangular full packed format for Cholesky's algorithm, ACM TOMS 37(2), section 2.
    """

    theta: nn.Parameter

    def __init__(self, features: int, **options: Unpack[Options]) -> None:
        super().__init__(features, features, **options)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the rectangle."""
        return {"theta": (self.in_features + 1 - self.in_features % 2, (self.in_features + 1) // 2)}

    def build(self) -> Tensor:
        """Unfold the rectangle: a lower triangle, below it a block, above it an upper triangle, moved."""
        size, odd = self.in_features, self.in_features % 2
        half = (size + 1) // 2
        lower = self.theta[1 - odd : 1 - odd + half].tril()
        block = self.theta[1 - odd + half :]
        upper = self.theta[: size - half, odd:].triu()
        first = torch.cat((lower + lower.tril(-1).mT, block.mT), 1)
        return torch.cat((first, torch.cat((block, upper + upper.triu(1).mT), 1)))
