"""For users' tests: assertions about what is shared, and a pytest plugin.

    from tied.testing import assert_tied

Names are loaded when they are first used: pytest loads the plugin of this package at its start, which must cost
nothing where no test asks for it. Read next: `assertions.py`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tied.testing.assertions import (
        assert_gradient_is_sum as assert_gradient_is_sum,
        assert_not_tied as assert_not_tied,
        assert_same_step as assert_same_step,
        assert_tied as assert_tied,
    )

__all__ = ["assert_gradient_is_sum", "assert_not_tied", "assert_same_step", "assert_tied"]


def __getattr__(name: str) -> Any:
    """Load an assertion when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module 'tied.testing' has no attribute '{name}'")
    return getattr(importlib.import_module("tied.testing.assertions"), name)
