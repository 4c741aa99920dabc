"""Checkpoint files, in four floors: reading, auditing, rewriting, and models to files and back.

Owns: every opening of a model file. Must not train, nor know layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tied.lazy import lazy_names

if TYPE_CHECKING:
    from tied.files.auditing.audit import audit as audit
    from tied.files.rewriting.expand import expand as expand
    from tied.files.rewriting.expanded_view import load_file as load_file
    from tied.files.rewriting.repair import repair as repair
    from tied.files.rewriting.shrink import shrink as shrink

_HOMES = {
    "tied.files.auditing.audit": "audit",
    "tied.files.rewriting.expand": "expand",
    "tied.files.rewriting.expanded_view": "load_file",
    "tied.files.rewriting.repair": "repair",
    "tied.files.rewriting.shrink": "shrink",
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
