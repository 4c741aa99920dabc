"""Chains of definitions, resolved: every target as an expression of what is no target itself.

Owns: `resolve`, and the error of a circle. Must not know modules. Read next: `binding/tie.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

from tied.algebra.address import Address, show_address
from tied.algebra.expression import Expression
from tied.errors import CycleError


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
