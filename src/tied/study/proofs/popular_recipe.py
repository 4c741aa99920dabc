"""The popular recipe, `decoder.weight = nn.Parameter(encoder.weight.t())`, against one parameter by hand.

Owns: two proofs. The oracle is `F.linear(codes, weight.t())` over three leaf tensors: plain torch.
Read next: `proof.py`.

The recipe makes a second Parameter over the same memory. Plain SGD does not notice, which is why people trust
it; whatever looks at parameters one by one does.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
from torch import nn

from tied.study.digits import load
from tied.study.proofs.operators import EXACT
from tied.study.proofs.proof import Control, Measurement, at_most
from tied.study.recipes import SECOND_PARAMETER, TIED, Recipe
from tied.study.reference import CLIP_NORM, Reference, clipped_step, mean_squared_error, parts

STEPS, IMAGES = 20, 64
RATE, DECAY = 0.1, 0.1
MakeOptimizer = Callable[[Iterable[torch.Tensor]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, MakeOptimizer] = {
    "SGD with decay": partial(torch.optim.SGD, lr=RATE, weight_decay=DECAY),
    "Adam": partial(torch.optim.Adam, lr=RATE / 10),
    "AdamW": partial(torch.optim.AdamW, lr=RATE / 10, weight_decay=DECAY),
}
CHANGES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "copy.deepcopy": copy.deepcopy,
    ".float()": lambda model: model.float(),
}


def _images() -> torch.Tensor:
    return load(torch.float64).images[:IMAGES]


def _leaves(oracle: Reference) -> list[torch.Tensor]:
    return [oracle.weight, oracle.encoder_bias, oracle.decoder_bias]


def _apart(recipe: Recipe, make: MakeOptimizer, clip: float = math.inf) -> float:
    """Return the largest difference to the oracle after the steps."""
    model, images = recipe.model(0, torch.float64), _images()
    oracle = Reference(parts(model))
    mine, theirs = make(model.parameters()), make(_leaves(oracle))
    for _ in range(STEPS):
        clipped_step(mine, lambda: mean_squared_error(model(images), images), clip)
        clipped_step(theirs, lambda: oracle.loss(images), clip)
    return parts(model).largest_difference(oracle.parts())


def _compared(claim: str, measure: Callable[[Recipe], float], note: str = "") -> Measurement:
    control = Control(SECOND_PARAMETER.name, measure(SECOND_PARAMETER))
    return Measurement(claim, measure(TIED), at_most(EXACT), control, note)


def trains_as_one_parameter() -> Iterator[Measurement]:
    """Compare tied, and as the control the popular recipe, with one parameter written by hand."""
    for name, make in OPTIMIZERS.items():
        yield _compared(f"{name}: {STEPS} steps as one parameter by hand", partial(_apart, make=make))
    sgd = partial(torch.optim.SGD, lr=RATE)
    right = _apart(SECOND_PARAMETER, sgd)
    yield _compared(
        f"SGD with clipping: {STEPS} steps as one parameter by hand",
        partial(_apart, make=sgd, clip=CLIP_NORM),
        note=f"Under plain SGD the popular recipe is off by {right:.0e} only, which is why it is trusted.",
    )
    yield _compared("the norm that clipping sees is one parameter's", _norm_gap)


def _norm_gap(recipe: Recipe) -> float:
    """Return the relative difference of the gradient norm that clipping sees."""
    model, images = recipe.model(0, torch.float64), _images()
    oracle = Reference(parts(model))
    optimizers = torch.optim.SGD(model.parameters()), torch.optim.SGD(_leaves(oracle))
    mine = clipped_step(optimizers[0], lambda: mean_squared_error(model(images), images), math.inf)
    truth = clipped_step(optimizers[1], lambda: oracle.loss(images), math.inf)
    return abs(mine - truth) / truth


def _spread_after(change: Callable[[nn.Module], nn.Module], recipe: Recipe) -> float:
    """Change a model, then train it a step; returns how far the decoder is from the encoder, transposed."""
    model = change(recipe.model(0, torch.float64))
    images = _images().to(next(model.parameters()).dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    clipped_step(optimizer, lambda: mean_squared_error(model(images), images), math.inf)
    return parts(model).spread()


def stays_tied() -> Iterator[Measurement]:
    """Copy and cast the model, then train it a step: decoder and encoder must still be one."""
    for name, change in CHANGES.items():
        yield _compared(f"after {name} and a step, decoder = encoder.T", partial(_spread_after, change))
