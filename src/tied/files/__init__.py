"""Checkpoint files: read, audited, shrunk, expanded, repaired, saved, loaded. The only code that opens them.

Names are loaded when they are first used, so that the command line answers `--help` without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tied.files.rewriting.expand import expand as expand
    from tied.files.rewriting.expanded_view import load_file as load_file
    from tied.files.rewriting.repair import repair as repair
    from tied.files.rewriting.shrink import shrink as shrink

_HOMES = {
    "load_file": "tied.files.rewriting.expanded_view",
    "shrink": "tied.files.rewriting.shrink",
    "expand": "tied.files.rewriting.expand",
    "repair": "tied.files.rewriting.repair",
}


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'tied.files' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *_HOMES})
