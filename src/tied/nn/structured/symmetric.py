"""Matrices that equal their transposes.

Owns: `SymmetricLinear`. Read next: `permutation_equivariant.py`, for every other symmetry.
"""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import Unpack

from tied.errors import during
from tied.nn.structured.gather import GatheredLinear
from tied.nn.structured.structured_linear import Options


class SymmetricLinear(GatheredLinear):
    """A square linear layer whose matrix equals its transpose.

    Law: `weight == weight.T`, exact; `weight[i, j] == theta[i * (i + 1) / 2 + j]` for `i >= j`.

    Without a bias the layer is the gradient of `x @ weight @ x / 2`.

    Shapes:
        theta: `(n * (n + 1) / 2,)`, the lower triangle row by row; index, a buffer that is not stored: `(n, n)`.

    Args:
        features: n, the width of input and output.
        bias, device, dtype: As in `StructuredLinear`; the one algorithm is `"dense"`.

    Example:
        >>> layer = SymmetricLinear(4)
        >>> bool((layer.weight == layer.weight.T).all()), layer.theta.numel()
        (True, 10)

    Source:
        Golub and Van Loan 2013, Matrix Computations, 4th edition, section 1.2.7 (packed storage).
    """

    def __init__(self, features: int, **options: Unpack[Options]) -> None:
        with during(f"SymmetricLinear({features!r})"):
            super().__init__(features, features, **options)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return one number for each entry of the triangle."""
        return {"theta": (self.in_features * (self.in_features + 1) // 2,)}

    def fixed(self) -> dict[str, Tensor]:
        """Find each entry, or the one across the diagonal, in the triangle."""
        place = torch.arange(self.in_features, device="cpu")
        row, column = torch.maximum(place[:, None], place), torch.minimum(place[:, None], place)
        return {"index": row * (row + 1) // 2 + column}
