"""Copies of parts: a target that was copied without its source has a Parameter of its own, which is said once.

Owns: which copies these are, and saying so when their Parameters are listed for the first time. Must not decide what
a copy is. Read next: `binding/late_reading.py`.

Not earlier, since a source may be copied after its target; and not at every copy, since many are only called. Whoever
lists them may be about to pair them with those of the original, which has fewer.
"""

from __future__ import annotations

import warnings
import weakref
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from torch import nn

from tied.errors import TieWarning

PARTED: WeakKeyDictionary[nn.Module, dict[str, str]] = WeakKeyDictionary()  # the expressions that they read, by name
_TOLD: WeakSet[nn.Module] = WeakSet()


def part(module: nn.Module, name: str, expression: str) -> None:
    """Take down that an attribute of a copy is a Parameter of its own, and no longer the expression."""
    PARTED.setdefault(module, {})[name] = expression
    _listen(module)


def join(module: nn.Module, name: str) -> None:
    """Take it back: the source was copied too, after its target."""
    left = PARTED.get(module, {})
    left.pop(name, None)
    if not left:
        PARTED.pop(module, None)
    _listen(module)


def ties_of(module: nn.Module) -> list[str]:
    """Return the ties that a copy was made without."""
    return [f"{name} = {expression}" for name, expression in PARTED.get(module, {}).items()]


def tell(module: nn.Module | None) -> None:
    """Say, the first time, that a module is such a copy."""
    if module is not None and module in PARTED and module not in _TOLD:
        _TOLD.add(module)
        warnings.warn(_parted(type(module).__name__, ties_of(module)), TieWarning, stacklevel=3)


def _listen(module: nn.Module) -> None:
    """Have the slots of a copy tell when they are listed; live ones ask here by themselves."""
    held = module.__dict__["_parameters"]
    if module in PARTED and type(held) is dict:
        module.__dict__["_parameters"] = Parted(module, held)


class Parted(dict[str, Any]):
    """The Parameters of a module that was copied without what some of them are tied to."""

    def __init__(self, module: nn.Module, entries: dict[str, Any]) -> None:
        """Hold the entries until they are listed."""
        super().__init__(entries)
        self.module = weakref.ref(module)

    def items(self) -> Any:
        """List the entries; the first time, say what was copied."""
        tell(self.module())
        return super().items()

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy as an ordinary dict: the copy of a copy is nothing new."""
        return dict, (dict(super().items()),)


def _parted(kind: str, ties: list[str]) -> str:
    names = " and ".join(f"'{tie.partition(' = ')[0]}'" for tie in ties)
    are = "is a Parameter of its own" if len(ties) == 1 else "are Parameters of their own"
    return (
        f"This {kind} was copied without the source of {', '.join(ties)}: {names} {are} in the copy, which "
        "the original does not list. Copy the model that holds both, or call tied.untie(model, target) before."
    )
