"""Verify: the proof by training that a model's shared weights are one weight each.

Owns: training a copy of the model beside the one-parameter reference, and saying where the two part. Must not
change the model, nor know how anything is tied. Read next: `side_by_side.py`, which compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW

from tied.errors import KindError, SharingError, during
from tied.proving.claims import Claim, Slots, asked, claims, shown
from tied.proving.objective import Loss, Objective, fresh
from tied.proving.reference import Reference
from tied.proving.rehearsal import Rehearsal, copied, first_line, rehearse
from tied.proving.side_by_side import MakeOptimizer, SideBySide, not_the_same_twice
from tied.proving.use_gradients import split
from tied.proving.working_copy import untouched, unwrapped

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
        uses: The uses of each weight that is used elsewhere than in slots of its own: called several times, or read
            by a forward from outside its module. Each has its part in the gradient.
        uses_unknown: Why such uses could not be told apart; "" where they were.
        copies: Frozen Parameters that a forward overwrites with others: such a use gives no gradient.
        unused: Names in groups that had no gradient in any step: of these the proof says nothing.
        dtype: In which was computed: "float64", or the model's own where it cannot compute in float64.
        reason: Why that is not float64; "" where it is.
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
    uses: Mapping[str, tuple[str, ...]]
    uses_unknown: str
    copies: tuple[str, ...]
    unused: tuple[str, ...]
    dtype: str
    reason: str
    differences: Mapping[str, float]

    __module__ = "tied"

    def __str__(self) -> str:
        """Return a few lines."""
        steps = f"{self.steps} step{'s' if self.steps > 1 else ''} of {self.optimizer}"
        lines = [f"{self.subject}: {steps} in {self.dtype}, equal to one parameter per group."]
        lines += [f"  In {self.dtype}, as {self.reason}"] if self.reason else []
        lines += [f"  {tie}" for tie in self.ties[:SHOWN]]
        lines += [f"  and {len(self.ties) - SHOWN} more"] if len(self.ties) > SHOWN else []
        lines += [f"  {tie}, as the tie itself reads it: its source is computed" for tie in self.late[:SHOWN]]
        lines += [f"  {weight} has {len(uses)} uses: {_few(uses)}" for weight, uses in list(self.uses.items())[:SHOWN]]
        lines += [f"  and {len(self.uses) - SHOWN} more weights with several uses"] if len(self.uses) > SHOWN else []
        lines += [f"  Uses in the forward were not told apart: {self.uses_unknown}"] if self.uses_unknown else []
        lines += [f"  {copy}, as the forward copies it: without a gradient" for copy in self.copies[:SHOWN]]
        lines += [] if len(lines) > 1 + bool(self.reason) else ["  It shares nothing."]
        if self.unused:
            lines.append(f"  Without a gradient here, so not proved: {', '.join(map(shown, self.unused))}")
        figures = ", ".join(f"{kind} {size:.0e}" for kind, size in self.differences.items())
        return "\n".join([*lines, f"  Largest relative difference: {figures}", f"  {self.parameters:,} parameters"])

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        lists = {name: list(getattr(self, name)) for name in ("ties", "late", "copies", "unused")}
        uses = {weight: list(uses) for weight, uses in self.uses.items()}
        return asdict(self) | lists | {"groups": [list(group) for group in self.groups], "uses": uses}


def _few(uses: tuple[str, ...]) -> str:
    return "; ".join(uses if len(uses) <= 4 else (*uses[:3], f"and {len(uses) - 3} more"))


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
    forward overwrites with another. Whatever is random is equally random on both sides. What would be wrong on both
    sides alike is refused too: a use past the gradient (`.data`), a Parameter that no optimizer has.

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
        KindError: the model cannot be trained: on meta, lazy, not copied, or without a finite loss and a gradient;
            or it does not do the same twice.

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
        objective = Objective(tuple(fresh(value, None) for value in inputs), loss)
        with torch.inference_mode(False), torch.enable_grad(), untouched(model):
            rehearsal = rehearse(model, objective)
            claimed = [*claims(Slots(model)), *asked(Slots(model), ties or {}), *rehearsal.overwritten]
            return Trial(model, rehearsal, make, steps).proof(claimed)


@dataclass(frozen=True)
class Trial:
    """Trains copies of a model beside references."""

    model: nn.Module
    rehearsal: Rehearsal
    make: MakeOptimizer
    steps: int

    def compared(self, claimed: list[Claim]) -> SideBySide:
        """Train a copy beside the reference of these claims; without any, that is another equal copy."""
        trained, objective = copied(self.model, self.rehearsal.objective)
        reference, its_objective = self.reference(claimed)
        compared = SideBySide(trained, reference, self.make, (objective, its_objective))
        compared.run(self.steps)
        return compared

    def reference(self, claimed: list[Claim]) -> tuple[Reference, Objective]:
        """Build the reference of these claims, with a loss of its own."""
        twin, objective = copied(self.model, self.rehearsal.objective)
        return Reference(twin, claimed), objective

    def judged(self, claimed: list[Claim]) -> SideBySide:
        """Compare, and accuse nobody whose equal copies part, or who parts otherwise the next time."""
        try:
            return self.compared(claimed)
        except SharingError as first:
            self.compared([])
            try:
                self.compared(claimed)
            except SharingError as second:
                if str(second) == str(first):
                    raise
            raise not_the_same_twice("the model and the reference part otherwise when trained again") from first

    def uses(self, claimed: list[Claim]) -> tuple[dict[str, tuple[str, ...]], str]:
        """Return the uses of each weight that has others than slots of their own; or why they are unknown.

        To tell uses apart, every slot holds another tensor: some forwards do not run so (compiled, under `vmap`).
        """
        reference, objective = self.reference(claimed)
        try:
            parts = split(reference, objective, seed=0)
        except Exception as error:  # whatever a foreign forward raises; the proof itself stands
            return {}, first_line(error)
        found = {shown(name): tuple(parts[name]) for name in parts if len(parts[name]) > 1}
        slots = set(map(shown, reference.slots.owners))
        return {name: uses for name, uses in found.items() if not slots.issuperset(uses)}, ""

    def proof(self, claimed: list[Claim]) -> Proof:
        """Compare, and word what was found equal."""
        compared = self.judged(claimed)
        if self.rehearsal.wrong is not None:
            raise self.rehearsal.wrong
        uses, unknown = self.uses(claimed)
        reference = compared.reference
        return Proof(
            subject=type(self.model).__name__,
            optimizer=compared.optimizer,
            steps=compared.steps,
            parameters=sum(leaf.numel() for leaf in compared.single.parameters),
            groups=tuple(reference.groups),
            ties=tuple(f"{shown(target)} = {claim.text}" for target, claim in reference.claims.items()),
            late=reference.late(),
            uses=uses,
            uses_unknown=unknown,
            copies=tuple(self.rehearsal.copies),
            unused=compared.unused,
            dtype=compared.dtype,
            reason=self.rehearsal.objective.reason,
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
