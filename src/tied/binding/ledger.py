"""What the hands do with the ledger: typed entries, and chains of ties resolved to their roots.

Owns: `entries` with their links, and `resolve`. Must not change modules. Read next: `tie.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn

from tied.algebra import Address, Expression, show_address
from tied.binding.link import Link
from tied.errors import CycleError
from tied.ledger import Tie as Tie, entries as _entries, ties as ties


def entries(model: nn.Module) -> Iterator[tuple[Tie, nn.Module, Link]]:
    """Yield every tie of a model with the module that holds its target, and its link."""
    return _entries(model)


def resolve(definitions: Mapping[Address, Expression]) -> dict[Address, Expression]:
    """Express every target by sources that are not targets themselves.

    Raises:
        CycleError: a target would define itself; the message shows the way round.
    """
    roots: dict[Address, Expression] = {}

    def root(target: Address, way: tuple[Address, ...]) -> Expression:
        if target in way:
            raise _cycle((*way[way.index(target) :], target))
        if target not in roots:
            expression = definitions[target]
            inner = {a: root(a, (*way, target)) for a in expression.sources() if a in definitions}
            roots[target] = expression.substitute(inner)
        return roots[target]

    for target in definitions:
        root(target, ())
    return roots


def _cycle(way: tuple[Address, ...]) -> CycleError:
    shown = [show_address(address) for address in way]
    if len(way) == 2:
        return CycleError(
            f"'{shown[0]}' would define itself.",
            found=f"'{shown[0]}' on both sides",
            expected="a source other than the target",
            fix="name the tensor that owns the memory as the source",
        )
    return CycleError(
        "These ties go round in a circle, so that none of them owns any memory.",
        found=" = ".join(shown),
        expected="at least one tensor that is not a target",
        fix="leave one of these ties out; tied.untie(model, target) undoes one that is in force",
    )
