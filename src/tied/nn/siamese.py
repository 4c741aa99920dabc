"""One tower for several inputs.

Owns: `Siamese`, and `twin`, which copies a module without its Parameters' memory.
Must not implement tying: that is `tied.tie`. Read next: `looped.py`.
"""

from __future__ import annotations

import copy
from typing import Any, Literal

from torch import nn

from tied.algebra import Address, Ref
from tied.binding import tie
from tied.errors import KindError, ShapeError, during
from tied.nn.input_checks import is_size


class Siamese(nn.Module):
    """One tower that several inputs go through; batch statistics shared between the branches, or private.

    Law: `Siamese(tower)(a, b) == (tower(a), tower(b))`, exact; so what comes out for `a` and `b` changes
    places when `a` and `b` do, in evaluation.

    Parameters are shared in any case. Buffers, such as the running statistics of batch norms, are a choice: with
    `statistics="shared"` every branch updates the same ones, in the order of the inputs; with `"private"` each
    branch keeps its own. The latter is what two domains need (photographs and sketches), whose statistics
    would otherwise be mixed and fit neither of them in evaluation.

    Args:
        tower: Any module; it is branch 0.
        branches: How many inputs there are.
        statistics: Of the branches' buffers: `"shared"` or `"private"`.

    Raises:
        KindError: `tower` is no module, or `statistics` is another word.
        ShapeError: `branches` is less than 1.

    Example:
        >>> import torch
        >>> pair = Siamese(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), statistics="private")
        >>> a, b = pair(torch.zeros(4, 3), torch.ones(5, 3))
        >>> a.shape, b.shape, sum(p.numel() for p in pair.parameters())
        (torch.Size([4, 2]), torch.Size([5, 2]), 12)

    Source:
        Bromley et al. 1994, Signature Verification using a "Siamese" Time Delay Neural Network, NIPS 6;
        Chang et al. 2019, arXiv:1906.03950 (batch statistics of its own for each domain).
    """

    def __init__(
        self, tower: nn.Module, branches: int = 2, *, statistics: Literal["shared", "private"] = "shared"
    ) -> None:
        super().__init__()
        with during(f"Siamese({type(tower).__name__}, {branches!r}, statistics={statistics!r})"):
            _check(tower, branches, statistics)
        self.branches, self.statistics = branches, statistics
        self.towers = nn.ModuleList([tower])
        for number in range(1, branches) if statistics == "private" else ():
            self.towers.append(twin(tower))
            tie(self, {("towers", str(number), *place): Ref(("towers", "0", *place)) for place in _places(tower)})

    def forward(self, *inputs: Any, **options: Any) -> tuple[Any, ...]:
        """Send each input through its branch; `options` go to every branch.

        Raises:
            ShapeError: there are not as many inputs as branches.
        """
        if len(inputs) != self.branches:
            with during("Siamese.forward(...)"):
                raise ShapeError(
                    "There is not one input for each branch.",
                    found=f"{len(inputs)} inputs",
                    expected=f"{self.branches}",
                    fix=f"Siamese(tower, branches={len(inputs)}); options of the tower are passed by name",
                )
        towers = [*self.towers] if self.statistics == "private" else [self.towers[0]] * self.branches
        return tuple(tower(input, **options) for tower, input in zip(towers, inputs, strict=True))

    def extra_repr(self) -> str:
        """Show the options."""
        return f"branches={self.branches}, statistics='{self.statistics}'"


def twin(module: nn.Module) -> nn.Module:
    """Copy a module with everything except its Parameters, which are those of the original: ready to be tied."""
    return copy.deepcopy(module, {id(parameter): parameter for parameter in module.parameters()})


def _places(module: nn.Module) -> list[Address]:
    """Return the address of every slot of a Parameter; one that stands in two slots has two."""
    return [
        (*path.split("."), name) if path else (name,)
        for path, child in module.named_modules()
        for name, parameter in child._parameters.items()
        if parameter is not None
    ]


def _check(tower: object, branches: object, statistics: str) -> None:
    if not isinstance(tower, nn.Module):
        raise KindError(
            "The tower is not a module.",
            found=type(tower).__name__,
            expected="an nn.Module that maps one input to one output",
            fix="Siamese(nn.Sequential(...)): one tower, not a list of them",
        )
    if not is_size(branches):
        raise ShapeError(
            "The number of branches is not one.",
            found=f"branches={branches!r}",
            expected="a positive whole number",
            fix="branches=2",
        )
    if statistics not in ("shared", "private"):
        raise KindError(
            "The branches' statistics are either shared or private.",
            found=f"statistics={statistics!r}",
            expected="'shared' or 'private'",
            fix="statistics='private'",
        )
