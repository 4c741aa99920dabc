"""Layers that treat their inputs as a set: permuting the inputs permutes the outputs.

Owns: `SetLinear`. Read next: `orbit.py`, for every other group.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tied.errors import during
from tied.nn.linear import draw_bias
from tied.nn.structured.kronecker import draw
from tied.nn.structured.structured_linear import Options, StructuredLinear

if TYPE_CHECKING:
    from torch import nn
    from typing_extensions import Unpack


class SetLinear(StructuredLinear):
    """A square linear layer that commutes with every permutation of its features.

    Law: `weight == theta[0] * I + theta[1] * ones`; `layer(x[..., p]) == layer(x)[..., p]` for each permutation `p`.

    These are all matrices with that property: two numbers, whatever the size. The bias is one number, shared by all
    outputs, since a private one would tell them apart.

    Algorithms: `"closed"`, `theta[0] * x + theta[1] * x.sum()`, O(n) time and memory; `"dense"` builds the matrix.

    Shapes:
        theta: `(2,)`: what an output takes from its own input, and from the sum of all. bias: `(1,)`.

    Args:
        features: Width of input and output.
        bias, algorithm, device, dtype: As in `StructuredLinear`.

    Example:
        >>> layer = SetLinear(3, bias=False)
        >>> _ = layer.theta.data.copy_(torch.tensor([2.0, 1.0]))
        >>> layer.weight.tolist()
        [[3.0, 1.0, 1.0], [1.0, 3.0, 1.0], [1.0, 1.0, 3.0]]

    Source:
        Zaheer et al. 2017, Deep Sets, arXiv:1703.06114, lemma 3.
    """

    theta: nn.Parameter
    fast = "closed"

    def __init__(self, features: int, **options: Unpack[Options]) -> None:
        with during(f"SetLinear({features!r})"):
            super().__init__(features, features, **options)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return two numbers, whatever the size."""
        return {"theta": (2,)}

    def bias_size(self) -> int:
        """Return one, for all outputs."""
        return 1

    def bias_of_outputs(self) -> Tensor | None:
        """Repeat the one bias."""
        return None if self.bias is None else self.bias.expand(self.out_features)

    def reset_parameters(self) -> None:
        """Draw both numbers so that own input and sum each give half the variance of `nn.Linear`'s outputs.

        Entries as large as `nn.Linear`'s would leave an output next to nothing of its own input.
        """
        draw(self.theta[:1], 1 / 6)
        draw(self.theta[1:], 1 / (6 * self.in_features))
        draw_bias(self.bias, self.in_features)

    def build(self) -> Tensor:
        """Add to the diagonal what an output takes from its own input."""
        own, shared = self.theta.unbind()
        return torch.eye(self.in_features, device=own.device, dtype=own.dtype) * own + shared

    def multiply(self, input: Tensor) -> Tensor:
        """Add the sum of all inputs to each."""
        own, shared = self.theta.unbind()
        return own * input + shared * input.sum(-1, keepdim=True)
