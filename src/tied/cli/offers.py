"""What a module of the user's offers to `tied check`: its models, classes and functions, read from its source.

Owns: finding the source of a module, and the lines to type. Must not import or run it. Must not print.
"""

from __future__ import annotations

import ast
import shlex
import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path
from typing import NamedTuple

MOST_OFFERS = 6


class Offer(NamedTuple):
    """One name of a module: what a call of it needs, and whether it looks like a model."""

    name: str
    needs: tuple[str, ...]
    is_model: bool

    def line(self, module: str) -> str:
        """Return the line to type."""
        needs = [part for name in self.needs for part in ("--arg", f"{name}=VALUE")]
        return shlex.join(["tied", "check", f"{module}:{self.name}", *needs])


def source_of(module: str) -> Path | None:
    """Find the source of a module as an import from this folder would, without running its packages."""
    paths, name = [str(Path.cwd()), *sys.path], ""
    origin = None
    for part in module.split("."):
        name = f"{name}.{part}" if name else part
        spec = PathFinder.find_spec(name, paths)
        if spec is None:
            return None
        paths, origin = list(spec.submodule_search_locations or ()), spec.origin
    return Path(origin) if origin and origin.endswith(".py") else None


def lines_to_type(module: str, source: Path) -> str:
    """Say what a module has in it that could be looked at, models first, each with its line.

    `module` is how the user names it: package.module, or the path of a file.
    """
    try:
        found = offers(source.read_bytes())
    except (OSError, SyntaxError, ValueError) as error:
        return f"{module} cannot be read: {error}"
    if not found:
        return f"{module} has no class and no function that could make a model"
    lines = [f"\n  {offer.line(module)}" for offer in found[:MOST_OFFERS]]
    more = f"\n  ... and {len(found) - MOST_OFFERS} more" if len(found) > MOST_OFFERS else ""
    return f"name what in {module} is the model, or makes it (which runs its code):{''.join(lines)}{more}"


def offers(source: bytes) -> list[Offer]:
    """Return the public names of a source that may be models or make them; those that look like models come first.

    Example:
        >>> [offer.line("model.py") for offer in offers(b"def make(width, depth=2): ...")]
        ['tied check model.py:make --arg width=VALUE']
    """
    models: set[str] = set()
    found = [offer for node in ast.parse(source).body for offer in _offers(node, models) if offer.name[0] != "_"]
    return sorted({offer.name: offer for offer in found}.values(), key=lambda offer: not offer.is_model)


def _offers(node: ast.stmt, models: set[str]) -> Iterator[Offer]:
    if isinstance(node, ast.FunctionDef):
        yield Offer(node.name, _needs(node), _last(node.returns).endswith(("Module", *models)))
    elif isinstance(node, ast.ClassDef) and node.bases:
        is_model = any(_last(base).endswith(("Module", "Model", "Layer", *models)) for base in node.bases)
        models |= {node.name} if is_model else set()
        made = [each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"]
        yield Offer(node.name, _needs(made[0])[1:] if made else (), is_model)
    elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
        is_model = _last(node.value.func) in models
        yield from (Offer(target.id, (), is_model) for target in node.targets if isinstance(target, ast.Name))


def _needs(function: ast.FunctionDef) -> tuple[str, ...]:
    """Return the parameters without a default."""
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    needed = positional[: len(positional) - len(arguments.defaults)]
    pairs = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    return (*(each.arg for each in needed), *(each.arg for each, default in pairs if default is None))


def _last(node: ast.expr | None) -> str:
    """Return the last part of a dotted name, subscripts left aside: `Module` of `torch.nn.Module`."""
    node = node.value if isinstance(node, ast.Subscript) else node
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
