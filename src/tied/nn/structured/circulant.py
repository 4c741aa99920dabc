"""Matrices whose rows are shifts of one another around a circle, whole or in blocks.

Owns: `CirculantLinear` and `BlockCirculantLinear`. Read next: `kronecker.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from tied.errors import ShapeError, during
from tied.nn.input_checks import check_size
from tied.nn.structured.structured_linear import Options, StructuredLinear
from tied.nn.structured.toeplitz import spectrum


def circulant(columns: Tensor) -> Tensor:
    """Return the circulant matrices with these first columns: `(..., n)` becomes `(..., n, n)`.

    >>> circulant(torch.tensor([1, 2, 3])).tolist()
    [[1, 3, 2], [2, 1, 3], [3, 2, 1]]
    """
    size = columns.shape[-1]
    turns = columns.roll(-1, -1).unsqueeze(-2).expand(*columns.shape[:-1], size + 1, size)
    shifted = turns.flatten(-2).unflatten(-1, (size, size + 1))  # rows one longer than a turn: each starts one later
    return shifted[..., :size].flip(-1)


class CirculantLinear(StructuredLinear):
    """A square linear layer whose rows are one row, shifted around a circle.

    Law: `weight[i, j] == theta[(i - j) % features]`; `layer(x.roll(1, -1)) == layer(x).roll(1, -1)` without a bias.

    The output is the circular convolution of `theta` and the input. With a bias for each output the layer does not
    commute with shifts any more; `bias=False`, or `OrbitLinear` with the shift, keeps that.

    Algorithms: `"fft"`, O(n log n) time and O(n) memory; `"dense"` builds the matrix. In float16 and bfloat16 the
    transforms compute in float32.

    Shapes:
        theta: `(features,)`, the first column of the matrix.

    Args:
        features: Width of input and output.
        bias, algorithm, device, dtype: As in `StructuredLinear`.

    Example:
        >>> layer = CirculantLinear(3, bias=False)
        >>> _ = layer.theta.data.copy_(torch.tensor([1.0, 2.0, 3.0]))
        >>> layer.weight.tolist()
        [[1.0, 3.0, 2.0], [2.0, 1.0, 3.0], [3.0, 2.0, 1.0]]

    Source:
        Cheng et al. 2015, An exploration of parameter redundancy in deep networks with circulant projections,
        arXiv:1502.03436.
    """

    theta: nn.Parameter
    fast = "fft"

    def __init__(self, features: int, **options: Unpack[Options]) -> None:
        with during(f"CirculantLinear({features!r})"):
            super().__init__(features, features, **options)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return one number for each input."""
        return {"theta": (self.in_features,)}

    def build(self) -> Tensor:
        """Shift the first column."""
        return circulant(self.theta)

    def multiply(self, input: Tensor) -> Tensor:
        """Multiply the spectra."""
        size = self.in_features
        return torch.fft.irfft(spectrum(input, size) * spectrum(self.theta, size), n=size).to(input.dtype)

    def pays(self) -> bool:
        """Compare with the measured crossover."""
        return self.in_features >= 128


class BlockCirculantLinear(StructuredLinear):
    """A linear layer whose matrix is a grid of circulant blocks.

    Law: block `(p, q)` of the matrix is the circulant matrix with the first column `theta[p, q]`.

    Between a circulant matrix (one block) and a dense one (blocks of size 1): the number of parameters is that of
    the matrix, divided by `block_size`.

    Algorithms: `"fft"`, O(n² / b · log b / b + n² / b) time; `"dense"` builds the matrix.

    Shapes:
        theta: `(out_features / block_size, in_features / block_size, block_size)`.

    Args:
        in_features: Width of the input, a multiple of `block_size`.
        out_features: Width of the output, a multiple of `block_size`.
        block_size: Width of each block; odd ones work too.
        bias, algorithm, device, dtype: As in `StructuredLinear`.

    Raises:
        ShapeError: `block_size` does not divide both widths.

    Example:
        >>> layer = BlockCirculantLinear(784, 256, block_size=16)
        >>> layer.theta.shape, layer.weight.numel() // layer.theta.numel()
        (torch.Size([16, 49, 16]), 16)

    Source:
        Ding et al. 2017, CirCNN, arXiv:1708.08917, section 3.
    """

    theta: nn.Parameter
    fast = "fft"
    shown = ("block_size",)

    def __init__(self, in_features: int, out_features: int, block_size: int, **options: Unpack[Options]) -> None:
        with during(f"BlockCirculantLinear({in_features!r}, {out_features!r}, {block_size!r})"):
            self.block_size = check_size("block_size", block_size)
            super().__init__(in_features, out_features, **options)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return one number for each block and shift."""
        size = self.block_size
        if self.in_features % size or self.out_features % size:
            raise ShapeError(
                "The blocks do not fill the matrix.",
                found=f"block_size={size} for a matrix of shape ({self.out_features}, {self.in_features})",
                expected="a block_size that divides both widths",
                fix=f"block_size={_nearest_divisor(self.in_features, self.out_features, size)}, or pad the input",
            )
        return {"theta": (self.out_features // size, self.in_features // size, size)}

    def build(self) -> Tensor:
        """Place the blocks."""
        return circulant(self.theta).transpose(1, 2).reshape(self.out_features, self.in_features)

    def multiply(self, input: Tensor) -> Tensor:
        """Multiply the spectra of the blocks as matrices, one for each frequency."""
        size = self.block_size
        blocks = spectrum(input.unflatten(-1, (-1, size)), size)
        product = torch.einsum("...qf,pqf->...pf", blocks, spectrum(self.theta, size))
        return torch.fft.irfft(product, n=size).flatten(-2).to(input.dtype)

    def pays(self) -> bool:
        """Compare with the measured crossover."""
        return self.block_size >= 8 and self.in_features * self.out_features >= 512 * 512


def _nearest_divisor(one: int, other: int, size: int) -> int:
    divisors = [each for each in range(1, min(one, other) + 1) if one % each == 0 and other % each == 0]
    return min(divisors, key=lambda each: abs(each - size))
