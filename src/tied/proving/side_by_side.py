"""Side by side: two models are trained at once, and everything that training makes is compared at each step.

Owns: one step of both, the comparison, and the words for the first difference. Must not build either of the two.
Read next: `use_gradients.py`, which asks the reference another question.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from tied.errors import KindError, SharingError, TieError
from tied.proving.claims import Claim, Slots, shown
from tied.proving.objective import Objective
from tied.proving.reference import Reference
from tied.proving.use_gradients import use_of
from tied.proving.watch import Watch
from tied.proving.working_copy import roll

MakeOptimizer = Callable[[list[Parameter]], Optimizer]
Pairs = Mapping[str, tuple[Tensor, Tensor]]


class Tolerance(NamedTuple):
    """The largest differences that count as none.

    Attributes:
        entry: Relative to the largest entry of a tensor.
        floor: Relative to the largest entry of all tensors: what rounding leaves of a gradient that is zero.
        rate: Of values, relative to the learning rate: what Adam makes of what rounding leaves.
    """

    entry: float
    floor: float
    rate: float


TOLERANCES = {torch.float64: Tolerance(1e-9, 1e-13, 1e-6), torch.float32: Tolerance(1e-4, 1e-6, 1e-2)}
COARSE = Tolerance(1e-2, 1e-3, 0.2)  # of half precision


def tolerance(dtype: torch.dtype) -> Tolerance:
    """Return what rounding may do in a dtype."""
    return TOLERANCES.get(dtype.to_real(), COARSE)


class Side:
    """One of the two: a model, what is trained of it, and the optimizer that trains it."""

    def __init__(self, model: nn.Module, parameters: list[Parameter], make: MakeOptimizer) -> None:
        """Take the parameters that are trained to a new optimizer."""
        self.model = model
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self.optimizer = make(self.parameters)
        _check_optimizer(self.optimizer, self.parameters)
        self.loss, self.norm = 0.0, 0.0

    def differentiate(self, objective: Objective, seed: int) -> None:
        """Compute loss and gradients, those of sparse embeddings as dense tensors."""
        self.optimizer.zero_grad(set_to_none=True)
        roll(seed)
        with Watch(objective.originals):
            loss = objective(self.model)
            loss.backward()
        for parameter in self.parameters:
            if parameter.grad is not None and parameter.grad.is_sparse:
                parameter.grad = parameter.grad.to_dense()
        grads = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        self.loss, self.norm = float(loss.detach()), float(torch.nn.utils.get_total_norm(grads))

    def step(self, most: float) -> None:
        """Clip the gradients to a norm of at most `most`, and take a step."""
        torch.nn.utils.clip_grad_norm_(self.parameters, most)
        self.optimizer.step()

    def state(self, parameter: Parameter) -> dict[str, Tensor]:
        """Return the tensors that the optimizer keeps for a parameter."""
        kept: Mapping[str, Any] = self.optimizer.state.get(parameter, {})
        return {key: value for key, value in kept.items() if isinstance(value, Tensor)}


def _check_optimizer(optimizer: Optimizer, parameters: list[Parameter]) -> None:
    given = {id(parameter) for parameter in parameters}
    strangers = [p for group in optimizer.param_groups for p in group["params"] if id(p) not in given]
    if strangers:
        raise KindError(
            "The optimizer trains other parameters than those that it is given, which are those of a copy.",
            found=f"{len(strangers)} of its parameters are not among them",
            expected="a function of the parameters, that closes over no model",
            fix="optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.01)",
        )


class SideBySide:
    """A model, as its optimizer sees it, against the one-parameter reference.

    Attributes:
        differences: The largest so far of each kind, relative to the largest entry of that kind.
    """

    def __init__(
        self, trained: nn.Module, reference: Reference, make: MakeOptimizer, objectives: tuple[Objective, Objective]
    ) -> None:
        """Take possession of both; each has a loss of its own, which may enclose it."""
        self.slots, self.reference, self.objectives = Slots(trained), reference, objectives
        self.model = Side(trained, list(trained.parameters()), make)
        self.single = Side(reference.slots.model, reference.parameters(), make)
        self.steps, self.most = 0, 0.0
        self.differences: dict[str, float] = {}
        self.uses: dict[str, Tensor] = {}
        self._used: set[str] = set()
        self._off: dict[str, dict[str, float]] = {}

    @property
    def optimizer(self) -> str:
        """The class of the optimizers."""
        return type(self.single.optimizer).__name__

    @property
    def dtype(self) -> str:
        """The name of the dtype that is computed in."""
        return str(self.single.parameters[0].dtype).removeprefix("torch.")

    @property
    def unused(self) -> tuple[str, ...]:
        """The names in groups that had no gradient in any step, neither there nor at their leaf."""
        return tuple(name for group in self.reference.groups for name in group if name in self.uses.keys() - self._used)

    # -- stepping -----------------------------------------------------------------------------------

    def run(self, steps: int) -> None:
        """Compare the values before the first step, then everything at each of the steps.

        Raises:
            SharingError: a group of sharing slots differs.
            KindError: something else does, so that the model does not do the same twice; or there are no steps.
        """
        if steps < 1:
            raise KindError("A proof takes steps.", found=f"steps={steps!r}", expected="1 or more", fix="steps=3")
        self._compare_start()
        for _ in range(steps):
            self._step()

    def _compare_start(self) -> None:
        """Compare the values, where the model does not make them equal by itself in its forward."""
        late = {name for name, claim in self.reference.claims.items() if claim.origin == "written"}
        self._compare("value", {n: pair for n, pair in self._values().items() if n not in late})
        if self._off:
            raise self._unequal()
        self.differences.clear()

    def _step(self) -> None:
        """Take one step on both sides, and compare all there is."""
        self.steps += 1
        grouped = {name for group in self.reference.groups for name in group}
        before = {name: (one.clone(), other.clone()) for name, (one, other) in self._values(grouped).items()}
        self._differentiate()
        self._compare("loss", {"the loss": (_number(self.model.loss), _number(self.single.loss))})
        self._compare("gradient", self._gradients())
        self._compare("clip norm", {"the clip norm": (_number(self.model.norm), _number(self.single.norm))})
        figures = self._gradient_norms()
        for side in (self.model, self.single):
            side.step(self.most)
        self._compare("value", self._values())
        for pairs in self._states():
            self._compare("optimizer's state", pairs)
        if self._off:
            raise self._parted(figures, before)

    def _differentiate(self) -> None:
        self.uses = {}
        self.model.differentiate(self.objectives[0], self.steps)
        self.reference.fill(self._mark)
        self.single.differentiate(self.objectives[1], self.steps)
        for name, tensor in (*self.uses.items(), *self.reference.leaves.items()):
            if tensor.grad is not None and bool(tensor.grad.norm()):
                self._used.add(name)
        if self.steps == 1:
            self.most = self.single.norm / 2
        if not torch.isfinite(_number(self.single.norm)):
            raise KindError(
                f"The gradients are not finite at step {self.steps}, so that nothing can be compared.",
                found=f"a norm of {self.single.norm}",
                expected="finite numbers",
                fix="choose inputs and a loss with finite gradients",
            )

    def _mark(self, name: str, tensor: Tensor) -> Tensor:
        if tensor.requires_grad:
            tensor = self.uses[name] = use_of(tensor)
        return tensor

    # -- what is compared ---------------------------------------------------------------------------

    def _values(self, names: Iterable[str] | None = None) -> dict[str, tuple[Tensor, Tensor]]:
        expected = self.reference.values(self.slots.owners if names is None else names)
        return {name: (self.slots.tensor(name).detach(), tensor.detach()) for name, tensor in expected.items()}

    def _gradients(self) -> dict[str, tuple[Tensor, Tensor]]:
        held, leaves = self.slots.parameters(), self.reference.leaves
        expected = self.reference.by_slot(lambda leaf: gradient_of(leaves[leaf]))
        return {name: (gradient_of(held[name]), gradient) for name, gradient in expected.items()}

    def _states(self) -> Iterable[Pairs]:
        """Return the optimizers' states, for each of their keys by name."""
        held, found = self.slots.parameters(), dict[str, dict[str, tuple[Tensor, Tensor]]]()
        for name, leaf in self.reference.leaves.items():
            if name in held:
                there = self.model.state(held[name])
                for key, expected in self.single.state(leaf).items():
                    found.setdefault(key, {})[name] = (there.get(key, torch.zeros_like(expected)), expected)
        return found.values()

    def _compare(self, kind: str, pairs: Pairs) -> None:
        scale = max((largest(expected) for _, expected in pairs.values()), default=0.0)
        allowed = max(tolerance(parameter.dtype) for parameter in self.single.parameters)
        floor = allowed.floor * scale + (allowed.rate * self._rate() if kind == "value" else 0.0)
        for name, (found, expected) in pairs.items():
            size = distance(found, expected)
            if not size <= allowed.entry * largest(expected) + floor:
                self._off.setdefault(name, {}).setdefault(kind, size)
            relative = size / scale if scale else size
            self.differences[kind] = max(self.differences.get(kind, 0.0), relative)

    def _rate(self) -> float:
        rates = [group.get("lr", 0.0) for group in self.single.optimizer.param_groups]
        return max((float(rate) for rate in rates), default=0.0)

    # -- what is said -------------------------------------------------------------------------------

    def _first_group(self) -> tuple[str, ...]:
        return next((group for group in self.reference.groups if any(name in self._off for name in group)), ())

    def _claims(self, group: tuple[str, ...]) -> list[Claim]:
        return [self.reference.claims[name] for name in group if name in self.reference.claims]

    def _unequal(self) -> SharingError:
        """Word that values differ before any step."""
        group = self._first_group()
        claim = next(claim for claim in self._claims(group) if claim.target in self._off)
        return SharingError(
            f"{listed(group)} shall be one weight, and have different values before the first step.",
            found=f"the largest difference is {self._off[claim.target]['value']:.3g}",
            expected=f"{shown(claim.target)} = {claim.text}",
            fix=_fix(claim),
        )

    def _parted(self, figures: dict[str, tuple[float, float]], before: Pairs) -> TieError:
        """Word how the model and the reference part in the present step."""
        group = self._first_group()
        if not group:
            return self._parted_alone()
        after = self._values()
        root, where = next(name for name in group if name in figures), f"step {self.steps} of {self.optimizer}"
        where += f" in {self.dtype}"
        sides = (0, self.model.norm), (1, self.single.norm)
        found, expected = (
            f"gradient norm {figures[root][side]:.4g}, clip norm {norm:.4g}, "
            f"largest change {max(largest(after[name][side] - before[name][side]) for name in group):.3g}"
            for side, norm in sides
        )
        return SharingError(
            f"{listed(group)} do not train as one weight: at {where} {self._worst(group)}.",
            found=found + self._lacking(root, group),
            expected=expected,
            fix=_fix(min(self._claims(group), key=lambda claim: claim.origin in ("same", "tie"))),
        )

    def _gradient_norms(self) -> dict[str, tuple[float, float]]:
        return {n: (float(found.norm()), float(expected.norm())) for n, (found, expected) in self._gradients().items()}

    def _lacking(self, root: str, group: tuple[str, ...]) -> str:
        """Word whose part of the gradient the optimizer does not see at the root."""
        held = self.slots.parameters()
        elsewhere = [n for n in group if held.get(n) is not None and held[n] is not held.get(root) and n in self._used]
        return f"; without the part of {' and '.join(map(shown, elsewhere))}" if elsewhere else ""

    def _parted_alone(self) -> TieError:
        """Word that the two part where nothing is claimed: two equal copies, or a model that is more than it says."""
        name = next(iter(self._off))
        where = f"at step {self.steps}: at {shown(name)} {self._worst([name])}"
        if not self.reference.claims:
            return not_the_same_twice(f"two equal copies part {where}")
        return SharingError(
            "The model does not train as one parameter per group, where nothing claims to share.",
            found=f"it parts from the reference {where}",
            expected=f"the only sharing: {', '.join(shown(name) for group in self.reference.groups for name in group)}",
            fix="let no forward ask what kind of tensor is in a slot, or name what is shared: ties={target: source}",
        )

    def _worst(self, names: Iterable[str]) -> str:
        """Word the difference that says most: that of the values, if there is one."""
        off = [(_SAYS.index(kind), -size) for name in names for kind, size in self._off.get(name, {}).items()]
        kind, size = min(off)
        return f"the {_SAYS[kind]} is off by {-size:.3g}"


def not_the_same_twice(found: str) -> KindError:
    """Word that a model has other results from equal weights, inputs and seeds."""
    return KindError(
        "The model does not do the same twice, so that nothing can be compared.",
        found=found,
        expected="equal results from equal weights, inputs and seeds",
        fix="keep its counters and generators in attributes of its modules, draw random numbers from torch, NumPy or "
        "random, which are seeded here, or verify in eval mode",
    )


_SAYS = ("value", "gradient", "optimizer's state", "clip norm", "loss")
_FIXES = {
    "tie": 'tied.retie(model, keep="source"), and build the optimizer anew',
    "memory": "tied.adopt(model, half_tied=True), and build the optimizer anew",
    "transformers": "model.tie_weights(), and build the optimizer anew; tied.adopt(model) makes the tie last",
}


def _fix(claim: Claim) -> str:
    tie = f"tied.tie(model, {shown(claim.target)!r}, {claim.text!r}), and build the optimizer anew"
    return _FIXES.get(claim.origin, f"take away what copies the weight: {tie}" if claim.origin == "written" else tie)


def listed(group: Sequence[str]) -> str:
    """Name the members of a group in a sentence, the first four of them."""
    names = [f"'{shown(name)}'" for name in group[:4]]
    more = [f"{len(group) - 4} more"] if len(group) > 4 else []
    *first, last = [*names, *more]
    return f"{', '.join(first)} and {last}"


def _number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def gradient_of(parameter: Parameter) -> Tensor:
    """Return a parameter's gradient, zeros where it has none."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.detach().clone()


def largest(tensor: Tensor) -> float:
    """Return the largest absolute value; zero where there is none."""
    numbers = tensor.int() if tensor.dtype == torch.bool else tensor
    return float(numbers.abs().max()) if tensor.numel() else 0.0


def distance(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference, with NaN and infinity equal to themselves; infinite where shapes differ."""
    if found.shape != expected.shape:
        return float("inf")
    same = (found == expected) | (found.isnan() & expected.isnan())
    if found.dtype == torch.bool:
        return float(not same.all())
    off = (found - expected).abs().masked_fill(same, 0.0).nan_to_num(nan=float("inf"), posinf=float("inf"))
    return largest(off)
