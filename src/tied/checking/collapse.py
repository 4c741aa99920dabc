"""Collapsing: whole modules that share are one line, not one for each tensor.

Owns: `collapse`. Must not look at tensors: it reads names. Read next: `check.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from tied.checking.inventory import Inventory, own_parameters
from tied.memory import IDENTITY
from tied.reporting.facts import Group

Paths = tuple[str, ...]


def collapse(groups: Sequence[Group], inventory: Inventory) -> tuple[Group, ...]:
    """Replace the groups of all parameters of modules by one group of the modules, with the former as `parts`.

    Modules are folded where every parameter of each is shared with its namesakes in the others, as it is, and
    there are two at least; the outermost modules of which this holds are named.

    Args:
        groups: As found, tensor by tensor.
        inventory: The tensors of the model.
    """
    owners: dict[tuple[str, Paths], list[int]] = {}
    heads = [group.names[0].rpartition(".")[0] for group in groups]
    counts = Counter(head for head in heads if head in inventory.modules)
    complete = {path for path, count in counts.items() if count >= own_parameters(inventory.modules[path])}
    for index, (group, head) in enumerate(zip(groups, heads, strict=True)):
        if head in complete and group.transforms.count(IDENTITY) == len(group.names):
            for modules in paths(group.names):
                owners.setdefault((group.state, modules), []).append(index)
    folded: dict[int, Group | None] = {}
    several = [(modules, found) for (_, modules), found in owners.items() if len(found) > 1]
    for modules, found in sorted(several, key=lambda item: (item[0][0].count("."), item[1])):
        if folded.keys() & set(found):
            continue
        shared = sum(inventory.is_parameter(groups[index].names[0]) for index in found)
        if all(inventory.count_parameters(path) == shared for path in modules):
            folded.update(dict.fromkeys(found))
            folded[found[0]] = whole(modules, [groups[index] for index in found])
    return tuple(g for index, group in enumerate(groups) if (g := folded.get(index, group)) is not None)


def paths(names: Sequence[str]) -> Iterator[Paths]:
    """Yield the modules that hold tensors under one name, from the innermost outwards.

    Example:
        >>> list(paths(["a.0.attention.weight", "b.0.attention.weight"]))
        [('a.0.attention', 'b.0.attention'), ('a.0', 'b.0'), ('a', 'b')]
    """
    while len(names) > 1:
        owners, _, lasts = zip(*[name.rpartition(".") for name in names], strict=True)
        if "" in owners or lasts.count(lasts[0]) < len(lasts):
            return
        yield owners
        names = owners


def above(name: str) -> Iterator[str]:
    """Yield the names of the modules that hold a name, from the innermost outwards."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def whole(modules: Paths, parts: list[Group]) -> Group:
    """Return the group of modules that hold the groups `parts`."""
    dtypes = {part.dtype for part in parts}
    dtype, size = dtypes.pop() if len(dtypes) == 1 else "", sum(part.bytes for part in parts)
    return Group(parts[0].state, modules, (IDENTITY,) * len(modules), (), dtype, size, tuple(parts))
