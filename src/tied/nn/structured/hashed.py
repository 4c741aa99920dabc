"""Layers whose entries share numbers at random, by a hash.

Owns: `HashedLinear`. Must not use random numbers of a library: see `splitmix.py`. Read next: `codebook.py`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Unpack

from tied.errors import during
from tied.nn.input_checks import check_size
from tied.nn.structured.gather import GatheredLinear, gather
from tied.nn.structured.splitmix import check_seed, splitmix64
from tied.nn.structured.structured_linear import Options


class HashedLinear(GatheredLinear):
    """A linear layer whose entries are drawn, with signs, from a few shared numbers: a hash says which.

    Law: with `h = splitmix64(seed, in_features * out_features)[i * in_features + j]`, an unsigned 64-bit integer,
    `weight[i, j] == theta[(h >> 1) % buckets]`, negative where the lowest bit of `h` is 1.

    The hash is specified to the bit (see `splitmix64`), so that a file of `theta` means the same everywhere and for
    ever. Layers that follow one another should have different seeds.

    Sharing saves numbers in the file and in the optimizer, not time: the matrix is built at each forward. What it is
    worth against a small dense layer with as many numbers: `benchmarks/hashed.py`.

    Shapes:
        theta: `(buckets,)`; index, a buffer that is not stored: `(out_features, in_features)`, of positions in
        `cat((theta, -theta))`.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        buckets: How many numbers the entries share.
        seed: Which of the hashes, from 0 to 2⁶⁴ - 1.
        bias, device, dtype: As in `StructuredLinear`; the one algorithm is `"dense"`.

    Example:
        >>> layer = HashedLinear(784, 256, buckets=3136)
        >>> layer.weight.numel() // layer.theta.numel()
        64

    Source:
        Chen et al. 2015, Compressing neural networks with the hashing trick, arXiv:1504.04788, section 4.
    """

    shown = ("buckets", "seed")

    def __init__(
        self, in_features: int, out_features: int, buckets: int, *, seed: int = 0, **options: Unpack[Options]
    ) -> None:
        with during(f"HashedLinear({in_features!r}, {out_features!r}, {buckets!r})"):
            self.buckets = check_size("buckets", buckets)
            self.seed = check_seed(seed)
            super().__init__(in_features, out_features, **options)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return one number for each bucket."""
        return {"theta": (self.buckets,)}

    def fixed(self) -> dict[str, Tensor]:
        """Hash each position; the signs are folded in, as the second half of `cat((theta, -theta))`."""
        hashes = splitmix64(self.seed, self.in_features * self.out_features)
        index = (hashes >> np.uint64(1)) % np.uint64(self.buckets) + (hashes & np.uint64(1)) * np.uint64(self.buckets)
        places = torch.from_numpy(index.astype(np.int64))
        return {"index": places.reshape(self.out_features, self.in_features)}

    def build(self) -> Tensor:
        """Pick the entries, with their signs."""
        return gather(torch.cat((self.theta, -self.theta)), self.settled("index"))
