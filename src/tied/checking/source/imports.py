"""What the names of a file mean: `N.Parameter` is `torch.nn.Parameter` after `import torch.nn as N`.

Owns: imports and aliases of torch's names. Must not follow values. Read next: `places.py`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Container, Iterable

from tied.checking.source.scopes import At, lookup
from tied.checking.source.vocabulary import STARRED, WITH_PARAMETERS

USUAL = {"torch": "torch", "nn": "torch.nn", "F": "torch.nn.functional", "tied": "tied"}  # where nothing is imported


class Names:
    """The imports of one file, wherever they stand, and torch's names where it imports none of them."""

    def __init__(self, nodes: Iterable[ast.AST], bound: Container[str]) -> None:
        """Read the imports; `bound` are the names that the file gives a meaning of its own."""
        self.known: dict[str, str] = {}
        for node in nodes:
            if isinstance(node, ast.Import):
                for alias in node.names:
                    top = alias.name.split(".")[0]
                    self.known[alias.asname or top] = alias.name if alias.asname else top
            elif isinstance(node, ast.ImportFrom):
                self._read(node)
        for name, meaning in USUAL.items():
            if name not in bound:
                self.known.setdefault(name, meaning)

    def _read(self, node: ast.ImportFrom) -> None:
        home = "." * node.level + (node.module or "")
        for alias in node.names:
            if alias.name != "*":
                self.known[alias.asname or alias.name] = f"{home}.{alias.name}"
            elif home in ("torch.nn", "torch.nn.modules"):
                self.known |= {name: f"torch.nn.{name}" for name in (*STARRED, *WITH_PARAMETERS)}

    def meaning(self, node: ast.expr, at: At) -> str:
        """Return the full dotted name that an expression means; "" where that is not known."""
        rest: list[str] = []
        for _ in range(50):
            if isinstance(node, ast.Attribute):
                rest.append(node.attr)
                node = node.value
                continue
            if not isinstance(node, ast.Name):
                return ""
            binding = lookup(node.id, at)
            if binding is None or not binding.value or binding.kind != "value":
                break
            node, at = binding.value, binding.at
        if not isinstance(node, ast.Name) or node.id not in self.known or _is_own(node.id, at):
            return ""
        return _public(".".join([self.known[node.id], *reversed(rest)]))


def _is_own(name: str, at: At) -> bool:
    """Whether a name is an argument, an element or a function here, whatever is imported elsewhere under it."""
    binding = lookup(name, at)
    return binding is not None and not isinstance(binding.at.statement, ast.Import | ast.ImportFrom)


def _public(name: str) -> str:
    """Return the name under which torch documents what may be imported from several places."""
    name = re.sub(r"^torch\.nn\.(modules(\.\w+)?|parameter)\.(?=\w)", "torch.nn.", name)
    return re.sub(r"^torch\.(?:_C\._nn|functional)\.", "torch.", name)
