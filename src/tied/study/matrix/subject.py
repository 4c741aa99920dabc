"""What a row operates on: a tied model, and how to find its parts whatever the recipe.

Owns: `Subject`, and the reasons why a row does not apply. Must not judge: `law.py` does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from tied.study.matrix.kinds import Column, Kind
from tied.study.reference import HIDDEN

SEED = 0
OTHER_SEED = 1_000_003
Weight = Callable[[Mapping[str, Tensor]], Tensor]
"""The shared weight as a function of the leaves."""


class DoesNotApply(Exception):
    """A row asks for something that a recipe has not."""


class Missing(Exception):
    """A parameter that the model should have is not there any more."""


def stored(leaves: Mapping[str, Tensor]) -> Tensor:
    """Return the shared weight where it is a leaf itself."""
    return leaves["weight"]


@dataclass(frozen=True)
class Subject:
    """A model under test.

    Attributes:
        kind: Transposed or identity.
        column: How it is tied.
        model: The model itself, after whatever happened to it.
        forward: What to call instead of the model.
        parameters: Names of the parameters that changed theirs.
        weight: The shared weight as a function of the leaves, where the source is computed.
    """

    kind: Kind
    column: Column
    model: nn.Module
    forward: Callable[[Tensor], Tensor] | None = None
    parameters: Mapping[str, str] = field(default_factory=dict[str, str])
    weight: Weight = stored

    @classmethod
    def fresh(cls, kind: Kind, column: Column, *, seed: int = SEED, dtype: torch.dtype = torch.float64) -> Subject:
        """Build a model and tie it."""
        return cls(kind, column, column.build(kind.start(seed, dtype)))

    def another(self, seed: int = OTHER_SEED, dtype: torch.dtype = torch.float64) -> Subject:
        """Build the same recipe with other values: where files are loaded into."""
        return Subject.fresh(self.kind, self.column, seed=seed, dtype=dtype)

    def then(self, model: nn.Module) -> Subject:
        """Go on with another model."""
        return replace(self, model=model)

    def called_as(self, forward: Callable[[Tensor], Tensor]) -> Subject:
        """Go on with another way to call the model."""
        return replace(self, forward=forward)

    def computed(self, leaves: Mapping[str, str], weight: Weight) -> Subject:
        """Go on with a source that is computed: `leaves` are parameters of its module, by leaf."""
        names = {leaf: f"{self.column.source}.{name}" for leaf, name in leaves.items()}
        kept = {leaf: name for leaf, name in self.names.items() if leaf != "weight"}
        return replace(self, parameters={**names, **kept}, weight=weight)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Run the model."""
        return (self.forward or self.model)(inputs)

    @property
    def names(self) -> Mapping[str, str]:
        """The name of the parameter of each leaf."""
        return self.parameters or self.column.parameters

    @property
    def main(self) -> str:
        """The leaf that stands for the shared weight: the weight, or what it is computed from."""
        return next(iter(self.names))

    def leaves(self) -> dict[str, Tensor]:
        """Return the model's parameters, by leaf.

        Raises:
            Missing: one of them is not among the model's parameters.
        """
        found = dict(self.model.named_parameters(remove_duplicate=False))
        for name in self.names.values():
            if name not in found:
                raise Missing(f"'{name}' is not among the model's parameters any more")
        return {leaf: found[name] for leaf, name in self.names.items()}

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the parameters."""
        return next(self.model.parameters()).dtype

    @property
    def source(self) -> nn.Module:
        """The module that owns the weight."""
        return self.model.get_submodule(self.column.source)

    @property
    def target(self) -> nn.Module:
        """The module that uses the weight a second time.

        Raises:
            DoesNotApply: there is no such module.
        """
        if self.column.target is None:
            raise DoesNotApply("this recipe has no second module")
        return self.model.get_submodule(self.column.target)

    def matrix(self, weight: Tensor) -> Tensor:
        """Return the weight as the second module uses it: transposed, or as it is."""
        return weight.t() if self.kind.name == "transposed" else weight

    @torch.no_grad()
    def decoding_matrix(self) -> Tensor:
        """Measure the matrix that `model.decode` multiplies by, without running the encoder."""
        codes = torch.eye(HIDDEN, dtype=self.dtype)
        decode: Callable[[Tensor], Tensor] = getattr(self.model, "decode")  # noqa: B009  (nn.Module types it as a tensor)
        return (decode(codes) - decode(torch.zeros_like(codes))).t()
