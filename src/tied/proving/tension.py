"""Tension: whether the uses of a shared weight pull it the same way.

Owns: the gradient of each shared weight, use by use. Must not change the model, nor draw: `reporting/tension.py` does.
Read next: `use_gradients.py`, which splits the gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from tied.errors import during
from tied.proving.claims import Slots, claims, shown
from tied.proving.objective import Objective, fresh
from tied.proving.reference import Reference
from tied.proving.rehearsal import copied, rehearse
from tied.proving.side_by_side import MakeOptimizer
from tied.proving.use_gradients import split
from tied.proving.verify import maker
from tied.proving.working_copy import untouched, unwrapped
from tied.reporting.tension import Pull, Tension


def tension(
    model: nn.Module,
    loss: Callable[..., Tensor],
    batches: Iterable[Any] = (),
    *,
    optimizer: Literal["sgd", "momentum", "adam", "adamw"] | MakeOptimizer | None = None,
) -> Tension:
    """Split the gradient of each shared weight by its uses, and compare the parts.

    A use is a slot that reads the weight (each target of a tie, each slot that holds the Parameter), and each call
    of a module that is called several times. The parts are exact: at every step

        gradient == sum of the parts

    Parts that point the same way (a positive cosine) make the tie a help: each use learns from the others. Parts
    that point against each other cancel, and the weight is a compromise.

    Args:
        model: Left as it is, bit for bit. Copies compute in float64, or as the model is where it cannot.
        loss: Gets the model, and the batch if there are batches; returns a number.
        batches: One step each; without any, there is one step, and `loss` gets the model only.
        optimizer: None looks at every batch with the weights as they are. Otherwise as in `tied.verify`: the copy
            is trained, so that the steps show how the tension develops.

    Returns:
        A `Tension`: `str()` is a table, `to_json()` the figures, `to_png()` a picture.

    Raises:
        KindError: the model has no values, cannot be copied, or the loss is no finite number with a gradient.

    Example:
        >>> model = nn.Sequential(nn.Embedding(7, 3), nn.Linear(3, 7, bias=False))
        >>> model[1].weight = model[0].weight
        >>> tokens = torch.arange(7)
        >>> (pull,) = tension(model, lambda m: nn.functional.cross_entropy(m(tokens), tokens)).pulls
        >>> pull.weight, pull.uses
        ('0.weight', ('0.weight', '1.weight'))
        >>> 0 < pull.agreement[0] <= 1
        True

    Source:
        The cosine between the gradients of tasks: Yu et al. 2020, "Gradient Surgery", arXiv:2001.06782, section 2.2.
    """
    with during(f"tension({type(model).__name__})"):
        model = unwrapped(model)
        objectives = [BatchObjective((batch,), loss) for batch in batches] or [Objective((), loss)]
        with torch.inference_mode(False), torch.enable_grad(), untouched(model):
            first, overwritten, *_ = rehearse(model, objectives[0])
            twin, first = copied(model, first)
            reference = Reference(twin, [*claims(Slots(model)), *overwritten])
            stepper = None if optimizer is None else maker(optimizer)(reference.parameters())
            steps: list[dict[str, Parts]] = []
            for seed, objective in enumerate(objectives):
                parts = split(reference, replace(objective, dtype=first.dtype, loss=first.loss), seed)
                steps.append({name: _measured(parts[name]) for name in parts})
                if stepper is not None:
                    stepper.step()
    return Tension(type(model).__name__, len(steps), tuple(_pulls(steps)))


class BatchObjective(Objective):
    """The loss of a model on one batch, `loss(model, batch)`."""

    def _loss(self, model: nn.Module) -> Any:
        assert self.loss is not None
        return self.loss(model, fresh(self.inputs[0], self.dtype))


class Parts(NamedTuple):
    """The uses of one weight in one step, and the inner products of their parts of the gradient."""

    uses: tuple[str, ...]
    products: Tensor


def _measured(parts: Mapping[str, Tensor]) -> Parts:
    flat = [part.detach().flatten().double() for part in parts.values()]
    return Parts(tuple(parts), torch.stack(flat) @ torch.stack(flat).T if flat else torch.zeros(0, 0))


def _pulls(steps: list[dict[str, Parts]]) -> Iterator[Pull]:
    """Yield an entry for each weight that has several uses in some step."""
    for weight in steps[0]:
        found = [step[weight] for step in steps]
        uses = tuple(dict.fromkeys(use for parts in found for use in parts.uses))
        if len(uses) > 1:
            yield _pull(shown(weight), uses, [_aligned(parts, uses) for parts in found])


def _aligned(parts: Parts, uses: tuple[str, ...]) -> Tensor:
    """Return the products with rows and columns for all uses, zero for those that this step does not have."""
    products = torch.zeros(len(uses), len(uses), dtype=torch.float64)
    places = torch.tensor([uses.index(use) for use in parts.uses], dtype=torch.long)
    products[places[:, None], places[None, :]] = parts.products.to(products)
    return products


def _pull(weight: str, uses: tuple[str, ...], products: list[Tensor]) -> Pull:
    norms = [matrix.diagonal().sqrt() for matrix in products]
    cosines = [matrix / (norm[:, None] * norm[None, :]) for matrix, norm in zip(products, norms, strict=True)]
    return Pull(
        weight,
        uses,
        norms=tuple(tuple(norm.tolist()) for norm in norms),
        cosines=tuple(tuple(tuple(row) for row in matrix.clamp(-1, 1).tolist()) for matrix in cosines),
        gradients=tuple(float(matrix.sum().clamp(min=0).sqrt()) for matrix in products),
    )
