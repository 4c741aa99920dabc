"""Rehearsal: what a run of a copy shows of a model before anything is compared.

Owns: finding the dtype that works, what the forward overwrites, and what it computes with past the gradient. Must not
train. Read next: `watch.py`, which sees the operations; `side_by_side.py`, which compares.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from tied.errors import SharingError
from tied.ledger import ties
from tied.proving.claims import Claim, Slots, claims, copy_of, same, shown, written
from tied.proving.objective import Objective
from tied.proving.watch import Read, Watch
from tied.proving.working_copy import roll, working_copy


class Rehearsal(NamedTuple):
    """What a run showed.

    Attributes:
        objective: In the dtype that works, with the reason where that is not float64.
        overwritten: Claims about trained Parameters that a forward overwrites with others.
        copies: Frozen Parameters that it overwrites with others, as equations.
        wrong: What no comparison would show: a Parameter that no optimizer sees, a use past the gradient, or a trained
            Parameter that is overwritten with what is no other Parameter.
    """

    objective: Objective
    overwritten: list[Claim]
    copies: list[str]
    wrong: SharingError | None = None


def copied(model: nn.Module, objective: Objective) -> tuple[nn.Module, Objective]:
    """Copy a model, and its loss, which may enclose the model."""
    twin, loss = working_copy((model, objective.loss), objective.dtype)
    originals = dict(model.named_parameters()) | dict(model.named_buffers())
    return twin, replace(objective, loss=loss, originals=originals)


def rehearse(model: nn.Module, objective: Objective) -> Rehearsal:
    """Run a copy: in float64, or as the model is where it cannot compute in float64.

    Raises:
        SharingError: the copy computes with a tensor of the model, a tie that copies do not keep; or its forward puts
            Parameters into slots.
    """
    try:
        return _rehearsed(model, objective)
    except (RuntimeError, TypeError) as error:  # what torch says of a dtype that it does not know somewhere
        objective = replace(objective, dtype=None, reason=f"float64 fails with {first_line(error)}")
    return _rehearsed(model, objective)


def first_line(error: Exception) -> str:
    """Return an error's class and the first line of its message, or most of it."""
    text = f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}".removesuffix(": ")
    return text if len(text) <= 120 else f"{text[:117]}..."


def _rehearsed(model: nn.Module, objective: Objective) -> Rehearsal:
    twin, own = copied(model, objective)
    slots = Slots(twin)
    at_first = _values(slots)
    before = _moved(slots, at_first)
    watch = Watch(own.originals, slots.parameters())
    leaves = _run(twin, own, watch)
    wrong = _stray(leaves, twin, at_first) or _cut_off(model, objective, slots, watch.detached)
    aliased, held = list(_aliased(slots, model)), dict(slots.parameters())
    if all(same(value, before[name]) for name, value in _values(slots).items()):
        return Rehearsal(objective, aliased, [], wrong)
    before = _moved(slots, _values(slots))  # once more: the first forward may initialize
    _run(twin, own, Watch(own.originals))
    _check_replaced(slots, held)
    after, found = _values(slots), [*written(slots, before), *aliased]
    trained = {name for name, parameter in slots.parameters().items() if parameter.requires_grad}
    overwritten = [claim for claim in found if claim.target in trained]
    unknown = {name for name in trained if not same(after[name], before[name])} - {c.target for c in overwritten}
    return Rehearsal(
        objective,
        overwritten,
        [f"{shown(claim.target)} = {claim.text}" for claim in found if claim.target not in trained],
        wrong or _lost(twin, own, before, sorted(unknown)),
    )


def _aliased(slots: Slots, model: nn.Module) -> Iterator[Claim]:
    """Yield claims about the Parameters that a forward laid over the memory of others."""
    known = {claim.target for claim in claims(Slots(model))}
    for claim in claims(slots):
        if claim.origin == "memory" and claim.target not in known:
            yield replace(claim, origin="written")


def _values(slots: Slots) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in slots.parameters().items()}


def _moved(slots: Slots, values: Mapping[str, Tensor], only: set[str] | None = None) -> dict[str, Tensor]:
    """Give Parameters values a little off, each by another amount, so that what is equal afterwards is a copy."""
    dice = torch.Generator().manual_seed(0 if only is None else 1)
    with torch.no_grad():
        for name, parameter in slots.parameters().items():
            parameter.grad = None
            noise = torch.rand(parameter.shape, generator=dice, dtype=torch.float64)
            if parameter.is_floating_point() and (only is None or name in only):
                parameter.copy_(values[name] + 1e-6 * noise.to(parameter) * (values[name].abs() + 1e-3))
            else:
                parameter.copy_(values[name])
    return _values(slots)


def _run(twin: nn.Module, objective: Objective, watch: Watch) -> list[Tensor]:
    """Run forward and backward, and return the leaves of the graph."""
    roll(0)
    with watch:
        loss = objective(twin)
        leaves = list(leaves_of(loss))
        loss.backward()
    return leaves


def _stray(leaves: list[Tensor], twin: nn.Module, held: Mapping[str, Tensor]) -> SharingError | None:
    """Word that a trained Parameter is not the model's, and has the values of one that is."""
    own = {id(parameter) for parameter in twin.parameters()}
    known = [*held.items(), *((name, parameter.detach()) for name, parameter in twin.named_parameters())]
    for leaf in leaves:
        if isinstance(leaf, Parameter) and id(leaf) not in own:
            equal = next((shown(name) for name, value in known if copy_of(leaf.detach(), value, name)), None)
            if equal is not None:
                return SharingError(
                    "The forward computes with a Parameter that is not in model.parameters(), so that no optimizer "
                    "steps it.",
                    found=f"a Parameter of shape {tuple(leaf.shape)} with the values of {equal}, kept elsewhere",
                    expected="each weight in a slot of a module",
                    fix=f"compute with the slot {equal} itself; keep no Parameter in a list or a closure",
                )
    return None


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


# -- past the gradient ---------------------------------------------------------------------------------


def _meant(model: nn.Module) -> set[str]:
    """Return the names of sources that a tie reads detached, as it says."""
    slots = Slots(model)
    stopped = [tie.source for tie in ties(model) if ".detach()" in str(tie.source)]
    return {slots.first(".".join(address)) for source in stopped for address in source.sources()}


def _cut_off(model: nn.Module, objective: Objective, slots: Slots, reads: list[Read]) -> SharingError | None:
    """Word that the loss depends on a weight past its gradient: one that has a gradient too, or a frozen copy."""
    meant = _meant(model)
    for read in reads:
        if read.parameter not in meant and (read.holder or slots.tensor(read.parameter).grad is not None):
            plain, again, shifted = (_loss(model, objective, shift) for shift in (None, None, read))
            if plain == again != shifted:
                return _is_cut_off(shown(read.parameter), read, slots)
    return None


def _loss(model: nn.Module, objective: Objective, shift: Read | None) -> float:
    twin, own = copied(model, objective)
    roll(0)
    with Watch({}, Slots(twin).parameters(), shift):
        return float(own(twin).detach())


def _is_cut_off(name: str, read: Read, slots: Slots) -> SharingError:
    through, target, source = "it by .data, .detach() or a copy", "target", name
    if read.holder:
        through, target = f"{shown(read.holder)}, a frozen copy of it", repr(shown(read.holder))
        source = copy_of(slots.tensor(read.holder), slots.tensor(read.parameter), read.parameter) or name
    return SharingError(
        f"'{name}' does not train as one weight: a use of it in the forward is cut off from its gradient.",
        found=f"aten.{read.operation} reads {through}, and the loss depends on that",
        expected="every use in the graph, so that the gradient is the sum over the uses",
        fix=f"compute with {name} itself; if no gradient is meant: tied.tie(model, {target}, '{source}.detach()')",
    )


def _check_replaced(slots: Slots, before: Mapping[str, Parameter]) -> None:
    """Refuse a forward that puts Parameters into slots: no optimizer has them."""
    name = next((name for name, parameter in slots.parameters().items() if parameter is not before.get(name)), None)
    if name is not None:
        raise SharingError(
            f"'{shown(name)}' is another Parameter after each forward, which no optimizer has.",
            found="the forward makes a Parameter and puts it there",
            expected="the Parameter that the optimizer was given",
            fix=f"make no Parameter in a forward: tied.tie(model, {shown(name)!r}, source)",
        )


def _lost(twin: nn.Module, objective: Objective, before: Mapping[str, Tensor], names: list[str]) -> SharingError | None:
    """Word that a trained Parameter's values after a forward do not depend on those before."""
    slots, after = Slots(twin), []
    for only in (set[str](), set(names)) if names else ():
        _moved(slots, before, only)
        _run(twin, objective, Watch(objective.originals))
        after.append(_values(slots))
    lost = next((name for name in names if same(after[0][name], after[1][name])), None)
    if lost is None:
        return None
    return SharingError(
        f"'{shown(lost)}' is overwritten in each forward, so that what its optimizer steps is lost.",
        found="values after the forward that do not depend on those before it",
        expected="a Parameter that only its optimizer writes, or a tie",
        fix=f"take away what writes it: tied.tie(model, {shown(lost)!r}, source)",
    )
