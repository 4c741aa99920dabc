"""Anchors: references to modules that find their way into copies, and never drag a module along.

Owns: what happens to a reference under `copy.deepcopy` and `pickle`. Must not know ties. Read next: `link.py`.

An anchor is copied empty. The module that it names carries a `Plant` in its `__dict__`; where the module
itself is copied, its plant comes along and fills the copied anchor with the copied module. So an anchor
in a copy names the copy of its module if the copy holds one, in whichever order they were copied.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable
from typing import Any
from weakref import WeakSet, WeakValueDictionary

from torch import nn
from torch.nn import Parameter

from tied.algebra import Address
from tied.ledger import PLANT as PLANT, declared as declared


class Anchor:
    """A reference to a module; empty in a copy that does not hold the module."""

    def __init__(self, module: nn.Module | None = None) -> None:
        """Refer to `module`, weakly."""
        self._reference = None if module is None else weakref.ref(module)
        self._waiting: list[Callable[[], object]] = []

    @property
    def module(self) -> nn.Module | None:
        """The module; None in a copy without it, and after its end."""
        return None if self._reference is None else self._reference()

    @property
    def is_filled(self) -> bool:
        """Whether it names a module, or named one that is no more."""
        return self._reference is not None

    def fill(self, module: nn.Module) -> None:
        """Name `module` from now on, and tell those who wait for it."""
        self._reference = weakref.ref(module)
        waiting, self._waiting = self._waiting, []
        for tell in waiting:
            tell()

    def when_filled(self, tell: Callable[[], object]) -> None:
        """Call `tell` when the copy of the module turns up."""
        self._waiting.append(tell)

    def __deepcopy__(self, memo: dict[int, Any]) -> Anchor:
        """Name the copy of the module if it is under way already."""
        return Anchor(memo.get(id(self.module)))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle empty."""
        return Anchor, ()


class Plant:
    """What an anchored module carries, so that a copy of the module fills the copies of its anchor.

    Attributes:
        anchor: The anchor that names the module.
        declared: The ties declared with the module as their home, as texts (target, source) seen from it:
            what `retie` puts back where a target's module was replaced.
        known: The modules that were inside when the ties were declared, and those that have replaced one since.
    """

    def __init__(
        self,
        anchor: Anchor,
        module: nn.Module,
        declared: dict[str, str] | None = None,
        known: Iterable[nn.Module] = (),
    ) -> None:
        """Fill `anchor` with `module`."""
        self.anchor, self.declared = anchor, dict(declared or {})
        self.known: WeakSet[nn.Module] = WeakSet(known)
        self._replaced: WeakValueDictionary[Address, nn.Module] = WeakValueDictionary()
        self._originals: tuple[Anchor, ...] = ()
        self._copied: WeakValueDictionary[str, Parameter] = WeakValueDictionary()
        anchor.fill(module)

    def is_new(self, module: nn.Module, path: Address) -> bool:
        """Tell whether a module at a path inside has replaced who stood there when the ties were declared."""
        if module not in self.known:
            self.known.add(module)
            self._replaced[path] = module
        return self._replaced.get(path) is module

    def is_remade_from(self, original: Anchor, name: str) -> bool:
        """Tell whether the module is a copy of another, and its Parameter was replaced after it had been copied."""
        module = self.anchor.module
        present = module._parameters.get(name) if module is not None else None
        return original in self._originals and present is not None and present is not self._copied.get(name)

    def __deepcopy__(self, memo: dict[int, Any]) -> Plant | None:
        """Fill the copied anchor with the copied module."""
        original = self.anchor.module
        module = memo.get(id(original))
        if module is None or original is None:
            return None
        known = [twin for old in self.known if (twin := memo.get(id(old))) is not None]
        plant = Plant(copy.deepcopy(self.anchor, memo), module, self.declared, known)
        plant._originals = (*self._originals, self.anchor)
        for name, parameter in dict.items(original._parameters):
            if (copied := memo.get(id(parameter))) is not None:
                plant._copied[name] = copied
        return plant

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle together with the module that carries it."""
        module = self.anchor.module
        return (Anchor, ()) if module is None else (Plant, (self.anchor, module, self.declared, list(self.known)))


def is_remade(module: nn.Module, original: Anchor, name: str) -> bool:
    """Tell whether a module was made of a copy of another, for the one use of the copy: a fused batch norm, say."""
    found = module.__dict__.get(PLANT)
    return isinstance(found, Plant) and found.anchor.module is module and found.is_remade_from(original, name)


def anchor(module: nn.Module) -> Anchor:
    """Return the anchor of a module, and plant one where there is none."""
    return plant(module).anchor


def plant(module: nn.Module) -> Plant:
    """Return the plant of a module, and make one where there is none."""
    found = module.__dict__.get(PLANT)
    if not isinstance(found, Plant) or found.anchor.module is not module:  # a shallow copy has that of its original
        found = Plant(Anchor(), module, found.declared if isinstance(found, Plant) else None)
        module.__dict__[PLANT] = found
    return found
