"""Schedules: which layers of a stack share, as one line.

Owns: `tie_layers` and its patterns. Read next: `equations.py`, which ties one module to another.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Sequence
from typing import Literal

from torch import nn

from tied.algebra import show_address
from tied.algebra.parser import parse_address
from tied.binding.equations import module_ties
from tied.binding.slots import ModuleTree
from tied.binding.tie import Keep, declare, unwrapped
from tied.errors import AddressError, KindError, ShapeError, during
from tied.ledger import Tie

Pattern = Literal["all", "sequence", "cycle", "cycle_rev", "sandwich", "immediate"]


def _cycle_rev(layer: int, count: int, unique: int) -> int:
    last_block = unique * (math.ceil(count / unique) - 1)
    return layer % unique if layer < last_block else unique - 1 - layer % unique


def _sandwich(layer: int, count: int, unique: int) -> int:
    shared = unique - 2
    if layer in (0, count - 1):
        return 0 if layer == 0 else unique - 1
    return 1 + (layer - 1) * shared // (count - 2)


# (layer, number of layers, number of unique ones) -> which unique one
PATTERNS: dict[str, Callable[[int, int, int], int]] = {
    "all": lambda layer, count, unique: 0,
    "sequence": lambda layer, count, unique: layer * unique // count,
    "cycle": lambda layer, count, unique: layer % unique,
    "cycle_rev": _cycle_rev,
    "sandwich": _sandwich,
    "immediate": lambda layer, count, unique: layer // 2,
}


def schedule(pattern: str, count: int, unique: int | None = None) -> list[int]:
    """Return for each of `count` layers the number of the unique layer that it is.

    >>> schedule("cycle_rev", 6, 3)
    [0, 1, 2, 2, 1, 0]
    >>> schedule("sandwich", 5)
    [0, 1, 1, 1, 2]

    Args:
        pattern: `all`: one for all. `sequence`: runs of neighbors. `cycle`: over and over. `cycle_rev`: a cycle
            whose last round runs backwards. `sandwich`: the first and the last are private, runs between.
            `immediate`: each layer twice in a row.
        count: How many layers there are.
        unique: How many different ones. Fixed for `all` (1) and `immediate` (half of them, rounded up);
            3 by default for `sandwich`; needed for the others.

    Raises:
        KindError: no such pattern.
        ShapeError: `unique` does not fit the pattern.

    Source:
        Takase & Kiyono 2021, arXiv:2104.06022 (sequence, cycle, cycle_rev); Reid et al. 2021, arXiv:2101.00234
        (sandwich); Liu et al. 2024, arXiv:2402.14905 (immediate); Lan et al. 2020, arXiv:1909.11942 (all).
    """
    if pattern not in PATTERNS:
        raise KindError(
            f"'{pattern}' is not a pattern of layers.",
            found=repr(pattern),
            expected=", ".join(PATTERNS),
            fix="tie_layers(model, 'layers', pattern='cycle', unique=3)",
        )
    fixed = {"all": 1, "immediate": math.ceil(count / 2)}.get(pattern)
    chosen = unique if unique is not None else fixed if fixed is not None else 3 if pattern == "sandwich" else None
    least = 3 if pattern == "sandwich" else 1
    if chosen is None or not least <= chosen <= count or (fixed is not None and chosen != fixed):
        raise ShapeError(
            f"unique does not fit the pattern '{pattern}' of {count} layers.",
            found=f"unique={unique}",
            expected=f"{fixed}" if fixed is not None else f"a whole number from {least} to {count}",
            fix=f"unique={fixed if fixed is not None else max(least, count // 2)}",
        )
    return [PATTERNS[pattern](layer, count, chosen) for layer in range(count)]


def tie_layers(
    model: nn.Module,
    layers: str,
    *,
    pattern: Pattern = "all",
    unique: int | None = None,
    private: Sequence[str] = (),
    keep: Keep = "source",
) -> tuple[Tie, ...]:
    """Share parameters between the layers of a stack; each unique layer owns what its copies read.

    Parameters are tied; buffers (batch-norm statistics) stay private, unless you share them afterwards with
    `tie(model, "layers.*.norm", "layers.0.norm", buffers=True)`. Sharing saves memory, not time.

    Args:
        model: Changed in place, and only if every check passes.
        layers: The address of the stack: a ModuleList, Sequential, or any module whose children are the layers;
            `""` where the model itself is the stack.
        pattern: Which layers are the same; see `schedule`.
        unique: How many different layers there are.
        private: Patterns of addresses that stay private to each layer, such as `["*.norm*", "*.bias"]`;
            here `*` stands for anything.
        keep: As in `tie`.

    Returns:
        The new ties.

    Raises:
        KindError, ShapeError: the pattern, or `unique`, or the layers do not fit.
        AddressError: `layers`, or a pattern of `private`, names nothing.

    Example:
        >>> model = nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(4, 4) for _ in range(4))})
        >>> print(*tie_layers(model, "layers", pattern="cycle", unique=2, private=["*.bias"]), sep=", ")
        layers.2.weight = layers.0.weight, layers.3.weight = layers.1.weight
    """
    with during(f"tie_layers(model, {layers!r}, pattern={pattern!r}, unique={unique})"):
        model = unwrapped(model)
        _refuse_text(private)
        tree = ModuleTree(model)
        address = parse_address(layers, tree) if layers else ()
        stack = [
            slot for slot in tree.slots(address) if slot.kind == "module" and len(slot.address) == len(address) + 1
        ]
        if not stack:
            raise KindError(
                f"'{layers}' holds no layers.",
                found="no child modules",
                expected="a ModuleList, a Sequential, or a module whose children are the layers",
                fix="name the module that holds the layers",
            )
        group = schedule(pattern, len(stack), unique)
        wanted = [
            tie
            for layer, number in enumerate(group)
            if group.index(number) != layer
            for tie in module_ties(tree, stack[layer], stack[group.index(number)], buffers=False)
        ]
        return declare(model, _without_private(wanted, private), keep=keep, buffers=False)


def _refuse_text(private: object) -> None:
    if isinstance(private, str):
        raise KindError(
            "private is a list of patterns, not a text.",
            found=f"private={private!r}",
            expected="a list",
            fix=f"private=[{private!r}]",
        )


def _without_private(wanted: list[Tie], private: Sequence[str]) -> list[Tie]:
    names = [show_address(tie.address) for tie in wanted]
    unused = [glob for glob in private if not fnmatch.filter(names, glob)]
    if unused and wanted:
        raise AddressError(
            f"The private pattern '{unused[0]}' matches no parameter that would be tied.",
            found=", ".join(names[:3]) + (" ..." if len(names) > 3 else ""),
            expected="a pattern such as '*.norm*' or '*.bias'",
            fix="correct the pattern, or leave it out",
        )
    return [t for t, name in zip(wanted, names, strict=True) if not any(fnmatch.fnmatch(name, g) for g in private)]
