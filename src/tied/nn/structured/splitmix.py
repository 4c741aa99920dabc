"""Numbers that look random and are the same on every platform, for ever.

Owns: the hash of hashed layers and of private signs. Must not use any library's random numbers, whose streams change
with versions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tied.errors import ShapeError, short


def splitmix64(seed: int, count: int) -> NDArray[np.uint64]:
    """Return the first `count` outputs of SplitMix64, started at `seed`.

    Law: with all arithmetic on unsigned 64-bit integers, modulo 2⁶⁴, output number `p = 0, 1, ...` is

        z = seed + (p + 1) * 0x9E3779B97F4A7C15
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB
        output = z ^ (z >> 31)

    Example:
        >>> splitmix64(1234567, 2).tolist()
        [6457827717110365317, 3203168211198807973]

    Source:
        Steele, Lea and Flood 2014, Fast splittable pseudorandom number generators, OOPSLA, section 4.
    """
    z = np.arange(1, count + 1, dtype=np.uint64)
    z *= np.uint64(0x9E3779B97F4A7C15)
    z += np.uint64(seed)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z ^= z >> np.uint64(shift)
        z *= np.uint64(factor)
    z ^= z >> np.uint64(31)
    return z


def check_seed(seed: object) -> int:
    """Return a seed that is an integer of 64 bits.

    Raises:
        ShapeError: it is not.
    """
    if type(seed) is not int or not 0 <= seed < 2**64:
        raise ShapeError(
            "'seed' is not a seed.",
            found=short(f"seed={seed!r}"),
            expected="an integer from 0 to 2⁶⁴ - 1",
            fix="seed=0",
        )
    return seed
