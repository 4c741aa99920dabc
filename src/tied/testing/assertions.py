"""Assertions: what a test says about shared weights.

Owns: the four assertions and their words. Must not change a model. Read next: `plugin.py`.

Each raises `tied.SharingError`, which is an `AssertionError`, in the form of all messages of `tied`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from tied.algebra import ref
from tied.checking.check import check
from tied.checking.groups import groups
from tied.errors import KindError, SharingError, during
from tied.proving.claims import Slots, claims, same, shown, unknown
from tied.proving.objective import Loss, Objective
from tied.proving.reference import Reference
from tied.proving.rehearsal import rehearse
from tied.proving.side_by_side import MakeOptimizer, Side, distance, gradient_of, largest, listed, tolerance
from tied.proving.use_gradients import split
from tied.proving.verify import OPTIMIZERS, maker
from tied.proving.working_copy import untouched, unwrapped, working_copy
from tied.reporting.facts import Group


def assert_tied(model: nn.Module, *names: str) -> None:
    """Assert that tensors, or whole modules, are one weight; without names, that all sharing of a model is sound.

    Sound is: something is shared, nothing is half-tied, and every declared tie is there (`tied.check` finds no
    error). Equal copies, and several Parameters over one memory, are not tied.

    Args:
        model: Not changed.
        *names: Two or more addresses, of tensors or of modules.

    Raises:
        SharingError: they are not tied; an AssertionError.
        AddressError: a name leads nowhere.

    Example:
        >>> model = nn.ModuleDict({"embed": nn.Embedding(7, 3), "head": nn.Linear(3, 7, bias=False)})
        >>> model["head"].weight = model["embed"].weight
        >>> assert_tied(model, "embed.weight", "head.weight")
        >>> assert_tied(model)
    """
    with during(_call("assert_tied", model, names)):
        model = unwrapped(model)
        if not names:
            _assert_sound(model)
        for some in _expanded(model, names):
            found = _relation(model, some)
            if found != "tied":
                raise SharingError(
                    f"{listed(some)} are not tied.",
                    found=found,
                    expected="one weight in all of these places",
                    fix=f"tied.tie(model, {some[-1]!r}, {some[0]!r}), or an expression of it, before the optimizer",
                )


def assert_not_tied(model: nn.Module, *names: str) -> None:
    """Assert that tensors, or whole modules, share no memory; without names, that nothing in a model does.

    Args:
        model: Not changed.
        *names: Two or more addresses, no two of which may share.

    Raises:
        SharingError: two of them share; an AssertionError.
        AddressError: a name leads nowhere.

    Example:
        >>> assert_not_tied(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    """
    with during(_call("assert_not_tied", model, names)):
        model = unwrapped(model)
        wanted = [pair for some in _expanded(model, names) for pair in combinations(some, 2)]
        for group in groups(model):
            shared = [pair for pair in wanted if set(pair) <= set(group.names)] if names else [group.names]
            if shared:
                raise SharingError(
                    f"{listed(shared[0])} share memory.",
                    found=_described(group),
                    expected="memory of their own",
                    fix=f"tied.untie(model, {shared[0][-1]!r}) if declared, else nn.Parameter(p.detach().clone())",
                )


def assert_gradient_is_sum(model: nn.Module, *inputs: Any, loss: Loss | None = None) -> None:
    """Assert that the gradient of every shared weight is the sum over its uses, in float64, up to 1e-9.

    The parts come from a reference with one leaf for each group of sharing slots, as in `tied.verify`; the arguments
    are as there.

    Raises:
        SharingError: a gradient is not the sum; the message names the uses. An AssertionError.
        KindError: nothing is shared, or nothing can be computed.

    Example:
        >>> model = nn.Sequential(nn.Embedding(7, 3), nn.Linear(3, 7, bias=False))
        >>> model[1].weight = model[0].weight
        >>> assert_gradient_is_sum(model, torch.arange(7))
    """
    with during(_call("assert_gradient_is_sum", model)):
        model = unwrapped(model)
        with torch.inference_mode(False), torch.enable_grad(), untouched(model):
            objective, overwritten, *_ = rehearse(model, Objective(inputs, loss))
            reference = Reference(working_copy(model, objective.dtype), [*claims(Slots(model)), *overwritten])
            parts = split(reference, objective, seed=0)
            trained = working_copy(model, objective.dtype)
            Side(trained, list(trained.parameters()), OPTIMIZERS["sgd"]).differentiate(objective, seed=0)
        if not reference.groups:
            raise _nothing_shared(model)
        sums = reference.by_slot(lambda leaf: sum(parts[leaf].values(), torch.zeros_like(reference.leaves[leaf])))
        held, shared = Slots(trained).parameters(), {name for group in reference.groups for name in group}
        for name in sums.keys() & shared:
            found = gradient_of(held[name])
            if not distance(found, sums[name]) <= tolerance(found.dtype).entry * largest(sums[name]):
                raise _no_sum(name, found, sums[name], parts.get(name, {}))


def _no_sum(name: str, found: Tensor, total: Tensor, parts: dict[str, Tensor]) -> SharingError:
    words = [f"{float(part.norm()):.4g} of {use}" for use, part in list(parts.items())[:4]]
    words += [f"{len(parts) - 4} more"] if len(parts) > 4 else []
    return SharingError(
        f"The gradient of '{shown(name)}' is not the sum over its uses.",
        found=f"norm {float(found.norm()):.4g}, off by {distance(found, total):.3g}",
        expected=f"norm {float(total.norm()):.4g}"
        + (f", the sum of parts of norm {', '.join(words)}" if words else ""),
        fix="tied.verify(model, ...) says what is wrong with the tie",
    )


def assert_same_step(
    model: nn.Module,
    expected: nn.Module,
    *inputs: Any,
    loss: Loss | None = None,
    optimizer: str | MakeOptimizer = "adamw",
) -> None:
    """Assert that one training step does the same to two models, in float64, up to 1e-9.

    Their losses are equal before and after the step, and so are all tensors that both have under one name, tied
    ones included. So `expected` may be another class, written by hand, with other names. Neither is changed; the
    arguments are as in `tied.verify`.

    Args:
        model: The model that is tested.
        expected: The model that is right.
        *inputs: Arguments of both.
        loss: As in `tied.verify`.
        optimizer: As in `tied.verify`.

    Raises:
        SharingError: something differs; an AssertionError.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
        >>> assert_same_step(model, model, torch.ones(1, 2))
    """
    with during(_call("assert_same_step", model)):
        models = [unwrapped(model), unwrapped(expected)]
        with torch.inference_mode(False), torch.enable_grad(), untouched(models[0]), untouched(models[1]):
            objective = rehearse(models[0], Objective(inputs, loss)).objective
            copies = [working_copy(each, objective.dtype) for each in models]
            sides = [Side(copy, list(copy.parameters()), maker(optimizer)) for copy in copies]
            _compare(copies, sides, objective, "before the step")
            for side in sides:
                side.step(float("inf"))
            _compare(copies, sides, objective, "after the step")


def _compare(models: Sequence[nn.Module], sides: Sequence[Side], objective: Objective, when: str) -> None:
    slots = [Slots(model) for model in models]
    names = [name for name in slots[1].owners if name in slots[0].owners]
    tensors = [{name: each.tensor(name).detach() for name in names} for each in slots]
    for side in sides:
        side.differentiate(objective, seed=0)
    losses = [torch.tensor(side.loss, dtype=torch.float64) for side in sides]
    exact = tolerance(sides[1].parameters[0].dtype)
    for what, found, right in [("the loss", *losses), *((name, *(t[name] for t in tensors)) for name in names)]:
        if not distance(found, right) <= exact.entry * largest(right):
            raise SharingError(
                f"The two models differ {when}.",
                found=f"{what} is off by {distance(found, right):.3g}",
                expected=f"the same loss, and the same {len(names)} tensors that both have by name",
                fix="tied.verify(model, ...) says whether a tie is at fault",
            )


# -- names and words --------------------------------------------------------------------------------------


def _assert_sound(model: nn.Module) -> None:
    report = check(model)
    errors = [finding for finding in report.findings if finding.severity == "error"]
    if errors:
        raise SharingError(
            f"{type(model).__name__} does not share what it seems to share.",
            found="; ".join(f"{finding.code}: {finding.message}" for finding in errors[:4]),
            expected="no finding of severity error",
            fix=errors[0].fix or "tied.check(model) shows the whole report",
        )
    if not groups(model):
        raise _nothing_shared(model)


def _nothing_shared(model: nn.Module) -> SharingError:
    return SharingError(
        f"{type(model).__name__} shares nothing.",
        found="every tensor in one place",
        expected="at least one tie",
        fix="tied.tie(model, target, source)",
    )


def _expanded(model: nn.Module, names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yield names of tensors that shall be one; tensor by tensor where the names are those of modules."""
    if len(names) == 1:
        raise KindError(
            "One name alone is not compared with anything.",
            found=names[0],
            expected="two or more addresses, or none for the whole model",
            fix="name the other places too",
        )
    if not names:
        return
    paths = [".".join(ref(name).address) for name in names]
    modules = dict(model.named_modules(remove_duplicate=False))
    if not all(path in modules for path in paths):
        yield tuple(_tensor_at(model, path) for path in paths)
        return
    inside = [set(Slots(modules[path]).owners) for path in paths]
    if any(found != inside[0] for found in inside):
        raise KindError(
            f"{listed(paths)} do not have tensors of the same names.",
            found=", ".join(sorted(set.union(*inside) - set.intersection(*inside))[:4]) + " in some of them",
            expected="modules of one kind",
            fix="name the tensors that shall be compared",
        )
    yield from (tuple(f"{path}.{name}" for path in paths) for name in sorted(inside[0]))


def _tensor_at(model: nn.Module, path: str) -> str:
    slots = Slots(model)
    if not slots.holds(slots.first(path)):
        raise unknown(slots, path)
    return path


def _relation(model: nn.Module, names: Sequence[str]) -> str:
    """Say what some tensors are to each other: "tied", or what they are instead."""
    for group in groups(model):
        if set(names) <= set(group.names):
            return group.state if group.state == "tied" else _described(group)
    first, *others = (Slots(model).tensor(name).detach() for name in names)
    if any(tensor.is_meta for tensor in (first, *others)):
        return "separate tensors on meta"
    if all(same(other, first) or (other.dim() == 2 and same(other.mT, first)) for other in others):
        return "equal copies: equal values in separate memory"
    return "different tensors"


def _described(group: Group) -> str:
    what = "several Parameters over one memory" if group.state == "half-tied" else "one weight"
    return f"{group.state}: {what}, {listed(group.names)}"


def _call(name: str, model: nn.Module, names: Sequence[str] = ()) -> str:
    return f"{name}({', '.join([type(model).__name__, *map(repr, names)])})"
