"""What is left of a tie after an everyday operation.

Owns: the operations and the verdict. Must not know any recipe by name. Read next: `training.py`.

The verdict is taken by training, not by looking at values: two separate weights with equal values would
pass a look. After the operation the model takes one AdamW step, and so does the reference.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn

from tied.study import reference
from tied.study.recipes import Recipe

EQUAL = 1e-9
"""Largest absolute difference that counts as equal after steps of size 0.01 in float64."""

OTHER_SEED = 1_000_003
YES, HALF, CUT = "yes", "half", "no"


def copied(recipe: Recipe, seed: int) -> nn.Module:
    """`copy.deepcopy(model)`, of a float64 model."""
    return copy.deepcopy(recipe.model(seed, torch.float64))


def doubled(recipe: Recipe, seed: int) -> nn.Module:
    """`model.double()`, of a float32 model."""
    return recipe.model(seed).double()


def reloaded(recipe: Recipe, seed: int) -> nn.Module:
    """`torch.save(model.state_dict())`, then `load_state_dict(assign=True)` into a newly built model."""
    fresh = recipe.model(seed + OTHER_SEED, torch.float64)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.pt"
        torch.save(recipe.model(seed, torch.float64).state_dict(), file)
        fresh.load_state_dict(torch.load(file, weights_only=True), assign=True)
    return fresh


OPERATIONS: Mapping[str, Callable[[Recipe, int], nn.Module]] = {
    "deepcopy": copied,
    "double": doubled,
    "save_load": reloaded,
}


def trained_difference(model: nn.Module, batches: torch.Tensor) -> float:
    """Train a float64 model and the reference from the same values, one step per batch.

    Shapes:
        batches: `(steps, batch, 64)`.

    Returns:
        The largest absolute difference between their parameters afterwards.
    """
    exact = reference.Reference(reference.parts(model))
    optimizer = reference.optimizer_for(model.parameters())
    for images in batches:
        exact.step(images)
        reference.clipped_step(optimizer, lambda x=images: reference.mean_squared_error(model(x), x))
    return reference.parts(model).largest_difference(exact.parts())


@torch.no_grad()
def follows(model: nn.Module) -> bool:
    """Write new values into the encoder's weight and look whether the decoder computes with them."""
    weight = reference.parameter_of_shape(model, *reference.parts(model).weight.shape)
    kept = weight.clone()
    weight.copy_(torch.linspace(-1, 1, weight.numel(), dtype=weight.dtype).view_as(weight))
    answer = torch.equal(reference.effective_decoder_weight(model), weight.t())
    weight.copy_(kept)
    return answer


def verdict(model: nn.Module, batches: torch.Tensor) -> str:
    """Say what a model's tie is worth: `"yes"`, `"half"` or `"no"`.

    `"yes"`: trains as one parameter. `"half"`: the decoder still follows the encoder's values, but training
    differs from one parameter. `"no"`: the decoder does not follow any more.
    """
    if not follows(model):
        return CUT
    return YES if trained_difference(model, batches) < EQUAL else HALF


def survival(recipe: Recipe, seed: int, images: torch.Tensor) -> dict[str, str]:
    """Run each operation on a newly built model and return its verdict; a refusal is `"error: ..."`."""
    verdicts: dict[str, str] = {}
    for name, operation in OPERATIONS.items():
        try:
            verdicts[name] = verdict(operation(recipe, seed), images[None])
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            verdicts[name] = f"error: {str(error).splitlines()[0]}"
    return verdicts
