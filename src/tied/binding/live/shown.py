"""How a module with live slots prints: as its class does, and its ties.

Owns: `extra_repr` of one module, whose class stays as it is. Must not change what it shows. Read next: `live_slots.py`.
"""

from __future__ import annotations

import weakref
from typing import Any

from torch import nn

from tied.binding.live.live_slots import live_names
from tied.binding.slots import links


class Shown:
    """The `extra_repr` of one module: what its class shows, and its live ties."""

    def __init__(self, module: nn.Module) -> None:
        """Show `module`, and do not keep it alive."""
        self._module = weakref.ref(module)

    def __call__(self) -> str:
        """Return the text."""
        module = self._module()
        if module is None:
            return ""
        own = type(module).extra_repr(module)
        held = [(name, links(module)[name]) for name in live_names(module) if name in links(module)]
        shown = [f"{name}={link.expression}" for name, link in held if link.identity_owner() is not None]
        return ", ".join([own, *shown] if own else shown)

    def __deepcopy__(self, memo: dict[int, Any]) -> Shown:
        """Show the copy of the module."""
        module = self._module()
        return Shown(memo.get(id(module), module))

    def __reduce__(self) -> Any:
        """Pickle with the module, which carries it."""
        return Shown, (self._module(),)
