"""What each recipe is worth, measured.

Owns: the properties of one recipe. Must not print, nor train to the end. Read next: `survival.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from tied.study import reference
from tied.study.demo.survival import survival, trained_difference
from tied.study.recipes import Recipe

COMPARED_STEPS = 20
COMPARED_BATCH = 32
GRADIENT_EQUAL = 1e-12
"""Largest difference, relative to the largest entry, that counts as the same gradient in float64."""


@dataclass(frozen=True)
class Properties:
    """What was measured of one recipe.

    Attributes:
        recipe: Its name.
        error: What torch said when the model could not be built, else `""`; then nothing else is known.
        parameters: Count of numbers that an optimizer would get.
        gradient_difference: Largest absolute difference to the sum over both uses, relative to its
            largest entry.
        steps_difference: Largest absolute difference of any parameter after 20 steps.
        survival: A verdict for each operation of `survival.OPERATIONS`.
    """

    recipe: str
    error: str = ""
    parameters: int | None = None
    gradient_difference: float | None = None
    steps_difference: float | None = None
    survival: Mapping[str, str] = field(default_factory=dict)

    @property
    def gradient_from_both(self) -> bool:
        """Whether the source's gradient is the sum over both uses."""
        return self.gradient_difference is not None and self.gradient_difference < GRADIENT_EQUAL


def gradient_difference(model: nn.Module, images: torch.Tensor) -> float:
    """Compare the gradient at the encoder's weight with the reference's: 0 means the sum over both uses.

    Shapes:
        images: `(batch, 64)`, float64 like the model.
    """
    expected = reference.Reference(reference.parts(model)).gradient(images)
    reference.mean_squared_error(model(images), images).backward()
    found = reference.parameter_of_shape(model, *expected.shape).grad
    assert found is not None, "every recipe trains the encoder's weight"
    return float((found - expected).abs().max() / expected.abs().max())


def properties(recipe: Recipe, seed: int, images: torch.Tensor) -> Properties:
    """Measure one recipe in float64 on the first 640 of at least 640 images `(count, 64)`."""
    count = COMPARED_STEPS * COMPARED_BATCH
    batches = images[:count].double().unflatten(0, (COMPARED_STEPS, COMPARED_BATCH))
    try:
        recipe.model(seed)
    except (TypeError, RuntimeError) as error:
        return Properties(recipe.name, error=f"{type(error).__name__}: {error}")
    model = recipe.model(seed, torch.float64)
    return Properties(
        recipe.name,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        gradient_difference=gradient_difference(model, batches[0]),
        steps_difference=trained_difference(recipe.model(seed, torch.float64), batches),
        survival=survival(recipe, seed, batches[0]),
    )
