"""How parameters start.

Owns: the bounds of uniform numbers, as for `torch.nn.init`. Must not know any layer. Read next: `linear.py`.
"""

from __future__ import annotations

import math

from torch import Tensor, nn


def draw(parameter: Tensor | None, fan_in: int) -> None:
    """Fill uniformly within `±1/sqrt(fan_in)`, as `nn.Linear` does; `None` and no inputs are fine."""
    if parameter is not None:
        bound = 1 / math.sqrt(fan_in) if fan_in else 0.0
        nn.init.uniform_(parameter, -bound, bound)


def draw_with_variance(parameter: Tensor, variance: float) -> None:
    """Fill uniformly around zero, with this variance."""
    bound = math.sqrt(3 * variance)
    nn.init.uniform_(parameter, -bound, bound)
