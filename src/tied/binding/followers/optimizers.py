"""Optimizers: told what a tie drops and what an untie makes, or, where they were not handed over, heard at their step.

Owns: `optimizer=` of the calls that tie and untie, and the warning at the next step of an optimizer that steps a
dropped Parameter or lacks a new one. Must not know how a tie is read. Read next: `parameter_marks.py`.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import itertools
import warnings
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from tied.algebra import Address, Expression, Ref
from tied.algebra.expression import Apply
from tied.errors import KindError, TieWarning
from tied.ledger import Tie

PARTITIONED = ("ZeroRedundancyOptimizer", "DeepSpeedZeroOptimizer")


Named = tuple[Tensor, str]


class Place(NamedTuple):
    """Where a Parameter is stepped."""

    optimizer: Any
    group: dict[str, Any]


class Optimizers:
    """The optimizers that were handed to a call, which it keeps in step with the model.

    `replace` and `add` note what is to change; `commit` changes it.
    """

    def __init__(self, given: Any = None, model: nn.Module | None = None) -> None:
        """Take one optimizer, several, or None, for the Parameters of `model`.

        Raises:
            KindError: something is no optimizer, or one whose Parameters cannot be changed; or none of them holds
                a Parameter of the model.
        """
        found = () if given is None else (given,) if hasattr(given, "param_groups") else given
        self.all: tuple[Any, ...] = tuple(found) if isinstance(found, Iterable) else (found,)
        for optimizer in self.all:
            _refuse_fixed(optimizer)
        self.held: dict[int, Place] = {
            id(tensor): Place(optimizer, group)
            for optimizer in self.all
            for group in optimizer.param_groups
            for tensor in group["params"]
        }
        if model is not None and self.all and not any(id(parameter) in self.held for parameter in model.parameters()):
            raise _of_another_model()
        self._instead: dict[int, list[Named]] = {}
        self._added: dict[int, list[Named]] = {}
        self._states: list[tuple[Any, Tensor, dict[str, Any] | None]] = []
        self.news: list[News] = []

    def replace(self, dropped: Tensor, expression: Expression, sources: Mapping[Address, Tensor], *, won: bool) -> None:
        """Let go of the Parameter of a target; a source that nobody steps takes its place.

        `won` tells that the source took the target's values, and so takes what the optimizer knew of them.
        """
        place = self.held.pop(id(dropped), None)
        if place is None:
            return
        state = place.optimizer.state.get(dropped)
        self._states.append((place.optimizer, dropped, None))
        unheld = [(a, tensor) for a, tensor in sources.items() if _is_trained(tensor) and id(tensor) not in self.held]
        self._instead[id(dropped)] = [(tensor, ".".join(address)) for address, tensor in unheld]
        self.held.update((id(tensor), place) for _, tensor in unheld)
        if won and state and moves(expression):
            ((address, source),) = sources.items()
            where = torch.arange(source.numel(), device=source.device).view(source.shape)
            order = expression.value({address: where}).flatten().argsort()
            if order.numel() == source.numel() and id(source) in self.held:
                known = _moved(state, dropped, lambda tensor: tensor.flatten()[order].view(source.shape))
                self._states.append((self.held[id(source)].optimizer, source, known))

    def add(
        self, new: Named, expression: Expression, sources: Mapping[Address, Tensor], near: Iterable[Tensor]
    ) -> None:
        """Step a Parameter of its own where its source is stepped, beginning with what is known of the source.

        `near` are the Parameters of the sources' modules, of which a computed source is made.
        """
        source = next((tensor for tensor in [*sources.values(), *near] if id(tensor) in self.held), None)
        if source is None:
            return
        place = self.held[id(source)]
        self._added.setdefault(id(place.group), []).append(new)
        state = place.optimizer.state.get(source)
        if state and moves(expression) and any(source is tensor for tensor in sources.values()):
            (address,) = expression.sources()
            same = isinstance(expression, Ref)
            known = _moved(state, source, None if same else lambda tensor: expression.value({address: tensor}))
            self._states.append((place.optimizer, new[0], known))

    def commit(self) -> None:
        """Change the optimizers: their states, then their lists; others hear of it when they step."""
        for optimizer, tensor, state in self._states:
            optimizer.state.pop(tensor, None)
            if state:
                optimizer.state[tensor] = state
        for group in (group for optimizer in self.all for group in optimizer.param_groups):
            names = group.get("param_names") or [""] * len(group["params"])
            kept = [self._instead.get(id(t), [(t, n)]) for t, n in zip(group["params"], names, strict=True)]
            entries = [*itertools.chain(*kept), *self._added.get(id(group), ())]
            group["params"][:] = [tensor for tensor, _ in entries]
            if "param_names" in group:
                group["param_names"][:] = [name for _, name in entries]
        self._instead, self._added, self._states = {}, {}, []
        _tell_later(self.news)

    def undo(self) -> Callable[[], None]:
        """Return what brings the optimizers back to where they are now."""
        groups = [group for optimizer in self.all for group in optimizer.param_groups]
        held = (group.get(key) for group in groups for key in ("params", "param_names"))
        lists = [(one, list(one)) for one in held if one is not None]
        states = [(optimizer.state, dict(optimizer.state)) for optimizer in self.all]

        def back() -> None:
            _forget(self.news)
            for held, before in lists:
                held[:] = before
            for state, before in states:
                state.clear()
                state.update(before)

        return back


def moves(expression: Expression) -> bool:
    """Tell whether an expression shows the entries of one source, so that what is known of each goes along."""
    is_view = all(node.transform.aliases for node in expression.nodes() if isinstance(node, Apply))
    return is_view and len(expression.sources()) == 1


def _is_trained(tensor: Tensor) -> bool:
    return isinstance(tensor, Parameter) and tensor.requires_grad


def _moved(state: Mapping[str, Any], of: Tensor, move: Callable[[Tensor], Tensor] | None) -> dict[str, Any]:
    """Return the state of one Parameter for another: moments are moved as the values were, counters are copied.

    Empty where something has another shape (factored or quantized moments): then the optimizer starts afresh.
    """
    if move is None:
        return copy.deepcopy(dict(state))
    moments = {key: value for key, value in state.items() if isinstance(value, Tensor) and value.numel() > 1}
    if any(value.shape != of.shape for value in moments.values()):
        return {}
    return {key: move(v.detach()).clone() if key in moments else copy.deepcopy(v) for key, v in state.items()}


def _refuse_fixed(optimizer: Any) -> None:
    kinds = {kind.__name__ for kind in type(optimizer).__mro__}
    if not hasattr(optimizer, "param_groups") or not hasattr(optimizer, "state"):
        raise KindError(
            "What was given as optimizer= is no optimizer.",
            found=type(optimizer).__name__,
            expected="a torch.optim.Optimizer, or a list of them",
            fix="tied.tie(model, ..., optimizer=optimizer)",
        )
    if "LBFGS" in kinds or not kinds.isdisjoint(PARTITIONED):
        raise KindError(
            f"The Parameters of {type(optimizer).__name__} cannot be changed once it is built.",
            found="one state for all Parameters together" if "LBFGS" in kinds else "Parameters spread over processes",
            expected="an optimizer with a state for each Parameter",
            fix="leave optimizer= out, and build the optimizer again afterwards",
        )


def able_to_follow(optimizers: Iterable[Any], model: nn.Module) -> list[Any]:
    """Return those of the optimizers that `Optimizers` takes."""
    found: list[Any] = []
    for optimizer in optimizers:
        with contextlib.suppress(KindError):
            Optimizers([optimizer], model)
            found.append(optimizer)
    return found


def _of_another_model() -> KindError:
    return KindError(
        "The optimizer holds no Parameter of this model.",
        found="an optimizer of another model, or one with copies of the Parameters",
        expected="the optimizer that trains the model",
        fix="leave optimizer= out, and build the optimizer again afterwards",
    )


def let_go(tie: Tie, dropped: Tensor, sources: Mapping[Address, Tensor], optimizers: Optimizers, *, won: bool) -> None:
    """Have optimizers let go of what a target held: those that were handed over, and others at their next step."""
    if isinstance(dropped, Parameter) and not any(dropped is source for source in sources.values()):
        optimizers.replace(dropped, tie.source, sources, won=won)
        optimizers.news.append(Dropped(dropped, str(tie), ()))


def take_up(tie: Tie, new: Tensor, link: Any, optimizers: Optimizers) -> None:
    """Have optimizers step what a target is given: those that were handed over, or others at their next step."""
    name, sources = ".".join(tie.target), link.tensors()
    owners = [source.look(link.home) for source in link.sources.values()]
    near = [parameter for owner in owners if owner is not None for parameter in owner.parameters()]
    if isinstance(new, Parameter) and optimizers.all:
        optimizers.add((new, name), link.expression, sources, near)
    elif isinstance(new, Parameter):
        optimizers.news.append(Made(new, name, near))


# -- optimizers that were not handed over -----------------------------------------------------------


class News:
    """A Parameter that was dropped or made, for the optimizers that step after that."""

    def __init__(self, tensor: Tensor, text: str, stepped: Iterable[Tensor]) -> None:
        """Remember the tensor as long as it lives; `stepped` are Parameters beside which it ought to be stepped."""
        self.tensor, self.text = weakref.ref(tensor), text
        self.stepped = [weakref.ref(each) for each in stepped]
        self.seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def message(self, held: set[int]) -> str | None:
        """Return what an optimizer that holds `held` has to be told; None where it is of no concern to it."""
        raise NotImplementedError


class Dropped(News):
    """The Parameter that a target had before the tie."""

    def message(self, held: set[int]) -> str | None:
        """Say that it is stepped for nothing, as soon as nothing gives it a gradient."""
        tensor = self.tensor()
        if tensor is None or id(tensor) not in held or (tensor.grad is not None and bool(tensor.grad.any())):
            return None
        return (
            f"The optimizer steps a Parameter that the model does not have any more, since {self.text}: build it "
            "again from model.parameters(), or hand it over where you tie: tied.tie(..., optimizer=optimizer)."
        )


class Made(News):
    """The Parameter that a target was given by an untie."""

    def message(self, held: set[int]) -> str | None:
        """Say that it is not trained, where its source is and no other optimizer holds it."""
        tensor = self.tensor()
        if tensor is None or tensor.grad is None or not tensor.requires_grad:
            return None
        if not any(id(source) in held for ref in self.stepped if (source := ref()) is not None):
            return None
        if any(_is_of_optimizer(found) for found in gc.get_referrers(tensor)):
            return None
        return (
            f"The optimizer does not step '{self.text}', which has a Parameter of its own since it was untied: hand "
            "the optimizer over where you untie, tied.untie(..., optimizer=optimizer), or add it now: "
            f"optimizer.add_param_group({{'params': [model.get_parameter({self.text!r})]}})."
        )


def _is_of_optimizer(found: object) -> bool:
    """Tell whether an object is the list of Parameters of some optimizer's group."""
    return isinstance(found, list) and any(
        isinstance(holder, dict) and holder.get("params") is found for holder in gc.get_referrers(found)
    )


_NEWS: list[News] = []
_HOOK: list[Any] = []


def _tell_later(news: Iterable[News]) -> None:
    """Have optimizers that were not handed over hear of Parameters at their next step."""
    _NEWS[:] = [each for each in [*_NEWS, *news] if each.tensor() is not None]
    if _NEWS and not _HOOK:
        _HOOK.append(register_optimizer_step_pre_hook(_at_step))


def _forget(news: Collection[News]) -> None:
    _NEWS[:] = [each for each in _NEWS if each not in news and each.tensor() is not None]
    if not _NEWS and _HOOK:
        _HOOK.pop().remove()


def _at_step(optimizer: Optimizer, _: Any, __: Any) -> None:
    if torch.compiler.is_compiling():
        return
    _forget(())
    waiting = [news for news in _NEWS if optimizer not in news.seen]
    held = {id(tensor) for group in optimizer.param_groups for tensor in group["params"]} if waiting else set[int]()
    for news in waiting:
        message = news.message(held)
        if message is not None:
            _forget((news,))
            warnings.warn(message, TieWarning, stacklevel=3)
        elif not held & _ids(news):
            news.seen.add(optimizer)
        elif isinstance(news, Made) and id(news.tensor()) in held:
            _forget((news,))


def _ids(news: News) -> set[int]:
    return {id(tensor) for ref in (news.tensor, *news.stepped) if (tensor := ref()) is not None}
