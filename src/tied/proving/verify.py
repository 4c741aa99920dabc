"""Verify: the proof by training that a model's shared weights are one weight each.

Owns: training a copy of the model beside the one-parameter reference, and saying where the two part. Must not
change the model, nor know how anything is tied. Read next: `side_by_side.py`, which compares the two.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW

from tied.errors import KindError, SharingError, during
from tied.proving.claims import Claim, Slots, asked, claims, shown, written
from tied.proving.objective import Loss, Objective
from tied.proving.reference import Reference
from tied.proving.side_by_side import MakeOptimizer, SideBySide
from tied.proving.working_copy import roll, untouched, unwrapped, working_copy

OPTIMIZERS: dict[str, MakeOptimizer] = {
    "sgd": lambda parameters: SGD(parameters, lr=0.01),
    "momentum": lambda parameters: SGD(parameters, lr=0.01, momentum=0.9, weight_decay=0.1),
    "adam": lambda parameters: Adam(parameters, lr=1e-3),
    "adamw": lambda parameters: AdamW(parameters, lr=1e-3, weight_decay=0.1),
}

SHOWN = 8  # ties that a proof's text lists


@dataclass(frozen=True)
class Proof:
    """What `tied.verify` found equal.

    Attributes:
        subject: The model's class.
        optimizer: The optimizer's class.
        steps: How many were taken.
        parameters: How many numbers were trained, the same on both sides.
        groups: The names that train as one, group by group.
        ties: The equations that held: `decoder.weight = encoder.weight.T`.
        late: Ties that the reference has too, because the module of their source computes it (a norm, pruning).
        unused: Names in groups that had no gradient in any step: of these the proof says nothing.
        dtype: In which was computed: "float64", or the model's own where it cannot compute in float64.
        differences: The largest difference between the model and the reference, relative to the largest entry:
            of the loss, the gradients, the clip norm, the values and the optimizer's state.
    """

    subject: str
    optimizer: str
    steps: int
    parameters: int
    groups: tuple[tuple[str, ...], ...]
    ties: tuple[str, ...]
    late: tuple[str, ...]
    unused: tuple[str, ...]
    dtype: str
    differences: Mapping[str, float]

    __module__ = "tied"

    def __str__(self) -> str:
        """Return a few lines."""
        steps = f"{self.steps} step{'s' if self.steps > 1 else ''} of {self.optimizer}"
        lines = [f"{self.subject}: {steps} in {self.dtype}, equal to one parameter per group."]
        lines += [f"  {tie}" for tie in self.ties[:SHOWN]] or ([] if self.late else ["  It shares nothing."])
        lines += [f"  and {len(self.ties) - SHOWN} more"] if len(self.ties) > SHOWN else []
        lines += [f"  {tie}, as the tie itself reads it: its source is computed" for tie in self.late[:SHOWN]]
        if self.unused:
            lines.append(f"  Without a gradient here, so not proved: {', '.join(map(shown, self.unused))}")
        figures = ", ".join(f"{kind} {size:.0e}" for kind, size in self.differences.items())
        return "\n".join([*lines, f"  Largest relative difference: {figures}", f"  {self.parameters:,} parameters"])

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        lists = {name: list(getattr(self, name)) for name in ("ties", "late", "unused")}
        return asdict(self) | lists | {"groups": [list(group) for group in self.groups]}


def verify(
    model: nn.Module,
    *inputs: Any,
    loss: Loss | None = None,
    optimizer: Literal["sgd", "momentum", "adam", "adamw"] | MakeOptimizer = "adamw",
    steps: int = 3,
    ties: Mapping[str, str] | None = None,
) -> Proof:
    """Prove by training that what `model` shares is one weight each.

    Two copies in float64 are trained side by side: the model as its optimizer sees it, and a reference, built
    without any mechanism of tying, in which each group of sharing slots is one leaf, and every slot a function of
    it. At each step the two must have

        equal losses, gradients, clip norms, values, and states of the optimizer

    up to rounding (1e-9 of the largest entry). What the model claims to share is read off it: one Parameter in
    several slots, several over one memory, ties of `tied`, what transformers declares, and Parameters that a
    forward overwrites with another. Whatever is random is equally random on both sides.

    Args:
        model: Left as it is, bit for bit; random numbers, modes and gradients included.
        *inputs: The model's arguments; one mapping alone holds arguments by name, as a tokenizer gives them.
        loss: Gets the output and returns a number. Where there are no inputs it gets the model, and runs it.
            Without it: `output.loss` where there is one, else the mean squared distance of all real tensors in the
            output to fixed random numbers.
        optimizer: "sgd", "momentum" (0.9, with weight decay), "adam", "adamw", or a function from a list of
            parameters to an optimizer. Gradients are clipped to half of their first norm.
        steps: At least 1.
        ties: What shall hold besides, as `tied.tie` takes it: `{"decoder.weight": "encoder.weight.T"}`.

    Returns:
        A `Proof`, with figures.

    Raises:
        SharingError: the two differ; the message names the group, the first step that differs, and by how much.
        AddressError: `ties` names nothing.
        KindError: the model cannot be trained: on meta, lazy, not copied, or without a finite loss and a gradient.

    Example:
        >>> model = nn.Sequential(nn.Embedding(7, 3), nn.Linear(3, 7, bias=False))
        >>> model[1].weight = model[0].weight
        >>> proof = verify(model, torch.arange(7))
        >>> proof.groups, proof.parameters, max(proof.differences.values()) < 1e-9
        ((('0.weight', '1.weight'),), 21, True)
        >>> model[1].weight = nn.Parameter(model[0].weight.detach())
        >>> verify(model, torch.arange(7))
        Traceback (most recent call last):
        tied.SharingError: ...
    """
    with during(f"verify({type(model).__name__})"):
        make = maker(optimizer)
        model = unwrapped(model)
        with torch.inference_mode(False), torch.enable_grad(), untouched(model):
            objective, overwritten = rehearse(model, Objective(inputs, loss))
            claimed = [*claims(Slots(model)), *asked(Slots(model), ties or {}), *overwritten]
            reference = Reference(working_copy(model, objective.dtype), claimed)
            compared = SideBySide(working_copy(model, objective.dtype), reference, make, objective)
            compared.run(steps)
    return _proof(type(model).__name__, compared)


def _proof(subject: str, compared: SideBySide) -> Proof:
    reference, trained = compared.reference, compared.single.parameters
    return Proof(
        subject=subject,
        optimizer=compared.optimizer,
        steps=compared.steps,
        parameters=sum(leaf.numel() for leaf in trained),
        groups=tuple(reference.groups),
        ties=tuple(f"{shown(target)} = {claim.text}" for target, claim in reference.claims.items()),
        late=reference.late(),
        unused=compared.unused,
        dtype=str(trained[0].dtype).removeprefix("torch."),
        differences=compared.differences,
    )


def maker(optimizer: str | MakeOptimizer) -> MakeOptimizer:
    """Return what makes the optimizer that has a name, or that is given itself.

    Raises:
        KindError: there is none of this name.
    """
    if isinstance(optimizer, str) and optimizer not in OPTIMIZERS:
        raise KindError(
            f"There is no optimizer called '{optimizer}' here.",
            found=repr(optimizer),
            expected=", ".join(OPTIMIZERS),
            fix="pass a function: optimizer=lambda parameters: torch.optim.RMSprop(parameters)",
        )
    return OPTIMIZERS[optimizer] if isinstance(optimizer, str) else optimizer


# -- before the training ---------------------------------------------------------------------------------


def rehearse(model: nn.Module, objective: Objective) -> tuple[Objective, list[Claim]]:
    """Run one forward of a copy: in float64, or as the model is where it cannot compute in float64.

    Returns:
        The objective in the dtype that works, and claims about the Parameters that the forward overwrites.

    Raises:
        SharingError: the copy computes with a tensor of the model: a tie that copies do not keep.
    """
    with suppress(RuntimeError, TypeError):  # what torch says of a dtype that it does not know somewhere
        return objective, _overwritten(model, objective)
    objective = replace(objective, dtype=None)
    return objective, _overwritten(model, objective)


def _overwritten(model: nn.Module, objective: Objective) -> list[Claim]:
    """Return the claims about what a forward overwrites.

    The values are first moved a little, each by another amount, so that what is equal afterwards is a copy.
    """
    copied = working_copy(model, objective.dtype)
    slots, dice = Slots(copied), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in copied.parameters():
            if parameter.is_floating_point():
                noise = torch.rand(parameter.shape, generator=dice, dtype=torch.float64).to(parameter)
                parameter.add_(1e-6 * noise * (parameter.abs() + 1e-3))
        before = {name: parameter.clone() for name, parameter in slots.parameters().items()}
    roll(0)
    _check_leaves(objective(copied), model)
    there = {name: parameter.detach() for name, parameter in Slots(model).parameters().items()}
    return list(written(slots, before, there))


def _check_leaves(loss: Tensor, model: nn.Module) -> None:
    names = {id(parameter): name for name, parameter in Slots(model).parameters().items()}
    foreign = [names[id(leaf)] for leaf in leaves_of(loss) if id(leaf) in names]
    if foreign:
        raise SharingError(
            "A copy of the model computes with the model's own tensors, so that it is not trained by its optimizer.",
            found=f"the copy reads {', '.join(shown(name) for name in sorted(foreign)[:4])} of the original",
            expected="a copy that stands by itself, as copy.deepcopy, EMA and pickle need it too",
            fix="let no closure or weak reference hold the source; tied.tie(model, target, source) needs none",
        )


def leaves_of(loss: Tensor) -> Iterator[Tensor]:
    """Yield the leaves of a loss's graph."""
    waiting, seen = [loss.grad_fn], set[Any]()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [inner for inner, _ in node.next_functions]
            leaf = getattr(node, "variable", None)
            if leaf is not None:
                yield leaf
