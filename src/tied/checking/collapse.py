"""Collapsing: whole modules of a model that share are one line, not one for each tensor.

Owns: `collapse`, which knows which names are those of Parameters, and what is one object. Read next:
`reporting/fold.py`.
"""

from __future__ import annotations

from collections.abc import Container, Sequence

from tied.checking.inventory import Inventory
from tied.reporting.facts import Group, State
from tied.reporting.fold import fold


def collapse(
    groups: Sequence[Group], inventory: Inventory, *, entire: Container[tuple[str, ...]] = ()
) -> tuple[Group, ...]:
    """Replace the groups of all parameters of modules by one group of the modules, with the former as `parts`.

    Args:
        groups: As found, tensor by tensor.
        inventory: The tensors of the model.
        entire: The names of groups that have findings of their own, of which nothing may be taken out.
    """

    def judge(state: State, names: Sequence[str]) -> State:
        are_one = state == "half-tied" and len({id(inventory.tensor(name)) for name in names}) == 1
        return "tied" if are_one else state

    return fold(groups, inventory.parameter_names, judge=judge, entire=entire)
