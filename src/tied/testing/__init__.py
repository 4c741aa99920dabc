"""For users' tests: assertions about what is shared, and a pytest plugin.

    from tied.testing import assert_tied

Names are loaded when they are first used: pytest loads the plugin of this package at its start, which must cost
nothing where no test asks for it.

Owns: what users' own tests say. Must not change a model. Read next: `assertions.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tied.lazy import lazy_names

if TYPE_CHECKING:
    from tied.testing.assertions import (
        assert_gradient_is_sum as assert_gradient_is_sum,
        assert_not_tied as assert_not_tied,
        assert_same_step as assert_same_step,
        assert_tied as assert_tied,
    )

__all__ = ["assert_gradient_is_sum", "assert_not_tied", "assert_same_step", "assert_tied"]
__getattr__, __dir__ = lazy_names(__name__, {"tied.testing.assertions": " ".join(__all__)})
