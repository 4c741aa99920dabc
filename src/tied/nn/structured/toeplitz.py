"""Matrices that are constant along their diagonals: convolution, as a linear layer.

Owns: `ToeplitzLinear`, and Fourier transforms in dtypes that FFT libraries lack. Read next: `circulant.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from tied.errors import during
from tied.nn.mixed_precision import wide
from tied.nn.structured.structured_linear import Options, StructuredLinear


def spectrum(values: Tensor, length: int) -> Tensor:
    """Return the Fourier transform along the last axis, padded with zeros to `length`.

    FFT libraries lack bfloat16, and float16 in part: these are transformed in float32.
    """
    return torch.fft.rfft(wide(values), n=length)


def smooth_length(least: int) -> int:
    """Return the next length at which Fourier transforms are fast: a product of twos, threes and fives.

    >>> smooth_length(2047), smooth_length(11), smooth_length(19)
    (2048, 12, 20)
    """
    length = least
    while not _is_smooth(length):
        length += 1
    return length


def _is_smooth(length: int) -> bool:
    for prime in (2, 3, 5):
        while length % prime == 0:
            length //= prime
    return length == 1


class ToeplitzLinear(StructuredLinear):
    """A linear layer whose matrix is constant along each diagonal.

    Law: `weight[i, j] == theta[i - j + in_features - 1]`.

    It is `torch.nn.functional.conv1d` of one channel, padded so that each output sees every input. Shifting the
    input by one shifts the output by one, up to what comes in at the border.

    Algorithms: `"fft"` pads to a circulant matrix, O(n log n) time and O(n) memory; `"dense"` multiplies with a view of
    `theta`. In float16 and bfloat16 the transforms compute in float32.

    Shapes:
        theta: `(out_features + in_features - 1,)`: the first row from its end, then down the first column.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        bias, algorithm, device, dtype: As in `StructuredLinear`.

    Example:
        >>> layer = ToeplitzLinear(3, 2, bias=False)
        >>> _ = layer.theta.data.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        >>> layer.weight.tolist()
        [[3.0, 2.0, 1.0], [4.0, 3.0, 2.0]]

    Source:
        Golub and Van Loan 2013, Matrix Computations, 4th edition, section 4.7.7 (product by FFT); Sindhwani et al.
        2015, Structured Transforms for Small-Footprint Deep Learning, arXiv:1510.01722.
    """

    theta: nn.Parameter
    fast = "fft"

    def __init__(self, in_features: int, out_features: int, **options: Unpack[Options]) -> None:
        with during(f"ToeplitzLinear({in_features!r}, {out_features!r})"):
            super().__init__(in_features, out_features, **options)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return one number for each diagonal."""
        return {"theta": (self.in_features + self.out_features - 1,)}

    def build(self) -> Tensor:
        """Read windows of the flipped vector, the last one first."""
        return self.theta.flip(0).unfold(0, self.in_features, 1).flip(0)

    def multiply(self, input: Tensor) -> Tensor:
        """Convolve, and cut out the outputs that a Toeplitz matrix has."""
        length = smooth_length(self.in_features + self.out_features - 1)
        product = spectrum(input, length) * spectrum(self.theta, length)
        whole = torch.fft.irfft(product, n=length)
        return whole.narrow(-1, self.in_features - 1, self.out_features).to(input.dtype)

    def pays(self) -> bool:
        """Compare with the measured crossover."""
        return min(self.in_features, self.out_features) >= 256
