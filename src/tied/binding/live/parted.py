"""Copies of parts: a target that was copied without its source has a Parameter of its own, which is said once.

Owns: saying so when the Parameters of such a copy are listed for the first time. Must not decide what a copy is. Read
next: `binding/late_reading.py`.

Not earlier, since a source may be copied after its target; and not at every copy, since many are only called. Whoever
lists them may be about to pair them with those of the original, which has one less.
"""

from __future__ import annotations

import warnings
import weakref
from typing import Any

from torch import nn

from tied.errors import TieWarning


class Parted(dict[str, Any]):
    """The Parameters of a module that was copied without what one of them is tied to."""

    def __init__(self, module: nn.Module, name: str, tie: str) -> None:
        """Stand in the module's slots until they are listed."""
        super().__init__(module.__dict__["_parameters"])
        self.module, self.name, self.tie = weakref.ref(module), name, tie

    def items(self) -> Any:
        """List the entries; the first time, say what was copied."""
        module = self.module()
        if module is not None and module.__dict__["_parameters"] is self:
            module.__dict__["_parameters"] = dict(super().items())
            warnings.warn(_parted(type(module).__name__, self.name, self.tie), TieWarning, stacklevel=2)
        return super().items()

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy as an ordinary dict: the copy of a copy is nothing new."""
        return dict, (dict(super().items()),)


def _parted(kind: str, name: str, tie: str) -> str:
    return (
        f"This {kind} was copied without the source of {tie}: '{name}' is a Parameter of its own in the copy, which "
        "the original does not list. Copy the model that holds both, or call tied.untie(model, target) before."
    )
