"""Matrices that are one vector, repeated.

Owns: `BroadcastLinear`, and the warning of outputs that stay equal. Read next: `permutation_equivariant.py`.
"""

from __future__ import annotations

import warnings
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Unpack

from tied.errors import KindError, ShapeError, during, explain
from tied.nn.init import draw, draw_with_variance
from tied.nn.input_checks import check_choice
from tied.nn.structured.constant_buffers import ConstantBuffers
from tied.nn.structured.splitmix import check_seed, splitmix64
from tied.nn.structured.structured_linear import Options

Per = Literal["input", "output", "scalar", "diagonal"]
Private = Literal["scale", "sign"]


class SymmetryWarning(UserWarning):
    """All outputs of a layer are the same, and training cannot tell them apart."""

    __module__ = "tied.nn"


class BroadcastLinear(ConstantBuffers):
    """A linear layer whose whole matrix is one vector, or one number, repeated.

    Law, by `per`:

        "input"      weight[i, j] == theta[j]         one number for each input: all rows are equal
        "output"     weight[i, j] == theta[i]         one number for each output: all columns are equal
        "scalar"     weight[i, j] == theta[0]         one number
        "diagonal"   weight[i, i] == theta[i]         one number for each feature, zero elsewhere

    and, where something is `private`, times `scale[i]` (`scale[j]` for `per="output"`), or times `signs[i, j]`.

    With `"input"` and `"scalar"` all outputs are equal but for the bias, get equal gradients, and stay equal: a
    `SymmetryWarning` says so. A private scale makes them multiples of one another (the matrix has rank 1); private
    signs, which are random and fixed, make each output see the inputs in its own way (unless tiny, of full rank).

    Algorithms: `"closed"`, O(n) time and memory; `"dense"` builds the matrix, and is the only one with signs.

    Shapes:
        theta: `(in_features,)`, `(out_features,)` or `(1,)`. scale: `(out_features,)`, or `(in_features,)` for
        `per="output"`. signs, a buffer that is not stored: `(out_features, in_features)`, int8; -1 where the lowest
        bit of `splitmix64(seed, ...)[i * in_features + j]` is 1.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        per: What has a number of its own.
        private: What each output has of its own beside its bias (each input, for `per="output"`).
        seed: Which signs.
        bias, algorithm, device, dtype: As in `StructuredLinear`.

    Raises:
        ShapeError: `per="diagonal"` for a matrix that is not square.
        KindError: `per="diagonal"` with something private, which it is already.

    Example:
        >>> layer = BroadcastLinear(3, 2, per="input", private="scale", bias=False)
        >>> _ = layer.theta.data.copy_(torch.tensor([1.0, 2.0, 3.0])), layer.scale.data.copy_(torch.tensor([1.0, -1.0]))
        >>> layer.weight.tolist()
        [[1.0, 2.0, 3.0], [-1.0, -2.0, -3.0]]

    Source:
        Goodfellow, Bengio and Courville 2016, Deep Learning, section 8.4 (units that start equal stay equal).
    """

    theta: nn.Parameter
    scale: nn.Parameter

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        per: Per = "input",
        private: Private | None = None,
        seed: int = 0,
        **options: Unpack[Options],
    ) -> None:
        with during(f"BroadcastLinear({in_features!r}, {out_features!r}, per={per!r}, private={private!r})"):
            self.per = check_choice("per", per, ("input", "output", "scalar", "diagonal"))
            self.private = private if private is None else check_choice("private", private, ("scale", "sign"))
            self.seed = check_seed(seed)
            self.fast = "dense" if private == "sign" else "closed"
            self.shown = ("per", "private", *["seed"] * (private == "sign"))
            super().__init__(in_features, out_features, **options)
        if private is None and per in ("input", "scalar") and out_features > 1:
            warnings.warn(_outputs_are_equal(self), SymmetryWarning, stacklevel=2)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the vector, and the private scale."""
        if self.per == "diagonal":
            return self._diagonal()
        wide, tall = (self.in_features,), (self.out_features,)
        shapes: dict[str, tuple[int, ...]] = {"theta": {"input": wide, "output": tall, "scalar": (1,)}[self.per]}
        if self.private == "scale":
            shapes["scale"] = wide if self.per == "output" else tall
        return shapes

    def _diagonal(self) -> dict[str, tuple[int, ...]]:
        if self.in_features != self.out_features:
            raise ShapeError(
                "Only a square matrix is its diagonal.",
                found=f"in_features={self.in_features}, out_features={self.out_features}",
                expected="equal widths",
                fix=f"BroadcastLinear({self.in_features}, {self.in_features}, per='diagonal')",
            )
        if self.private is not None:
            raise KindError(
                "A diagonal matrix has nothing to tell apart: each output has its own number already.",
                found=f"private={self.private!r} with per='diagonal'",
                expected="private=None",
                fix="leave private out",
            )
        return {"theta": (self.in_features,)}

    def fixed(self) -> dict[str, Tensor]:
        """Draw the private signs."""
        if self.private != "sign":
            return {}
        bits = splitmix64(self.seed, self.in_features * self.out_features) & np.uint64(1)
        signs = 1 - 2 * torch.from_numpy(bits.astype(np.int8))
        return {"signs": signs.reshape(self.out_features, self.in_features)}

    def reset_parameters(self) -> None:
        """Draw `theta` so that outputs have the variance of `nn.Linear`'s, and scales with variance 1."""
        draw_with_variance(self.theta, 1 / (3 * (1 if self.per == "diagonal" else self.in_features)))
        if self.private == "scale":
            draw_with_variance(self.scale, 1)
        draw(self.bias, self.in_features)

    def _column_and_row(self) -> tuple[Tensor, Tensor | None]:
        """Return the vectors whose outer product the matrix is, but for signs; no row stands for ones."""
        scale = self.scale if self.private == "scale" else self.theta.new_ones(1)
        if self.per == "input":
            return scale, self.theta
        if self.per == "output":
            return self.theta, self.scale if self.private == "scale" else None
        return self.theta * scale, None

    def build(self) -> Tensor:
        """Repeat the vector."""
        if self.per == "diagonal":
            return self.theta.diag()
        column, row = self._column_and_row()
        matrix = column[:, None] if row is None else column[:, None] * row
        if self.private == "sign":
            return matrix * self.settled("signs").to(matrix.dtype)
        return matrix.expand(self.out_features, self.in_features)

    def multiply(self, input: Tensor) -> Tensor:
        """Reduce the input to one number, and spread it."""
        if self.per == "diagonal":
            return input * self.theta
        column, row = self._column_and_row()
        number = input.sum(-1, keepdim=True) if row is None else F.linear(input, row[None])
        return (number * column).expand(*input.shape[:-1], self.out_features).contiguous()


def _outputs_are_equal(layer: BroadcastLinear) -> str:
    return explain(
        f"BroadcastLinear({layer.in_features}, {layer.out_features}, per={layer.per!r})",
        "All outputs are equal but for the bias, get equal gradients, and stay equal.",
        found=f"{layer.out_features} equal rows, nothing private",
        expected="private='scale' or private='sign', or per='output'",
        fix="private='sign'; or, where it is meant, warnings.simplefilter('ignore', tied.nn.SymmetryWarning)",
        changed="The layer was made all the same.",
    )
