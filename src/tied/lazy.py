"""Packages whose names are loaded when they are first used: `tied --help` answers without torch.

Owns: the module-level `__getattr__` and `__dir__` of such a package (PEP 562). Must not import anything of ours.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` for a package.

    Args:
        package: Its name.
        homes: For each module, the names that come from it, separated by spaces. What comes from the package itself
            is a module of that name.
    """
    home_of = {name: home for home, names in homes.items() for name in names.split()}

    def load(name: str) -> Any:
        if name not in home_of:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        home = home_of[name]
        is_module = home == package
        module = importlib.import_module(f"{home}.{name}" if is_module else home)
        value = vars(sys.modules[package])[name] = module if is_module else getattr(module, name)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *home_of})

    return load, names
