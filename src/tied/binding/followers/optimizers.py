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
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
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
        optimizers.news.append(News(dropped, str(tie)))


def take_up(tie: Tie, new: Tensor, link: Any, optimizers: Optimizers) -> None:
    """Have optimizers step what a target is given: those that were handed over, or others at their next step."""
    name, sources = tie.target, link.tensors()
    owners = [source.look(link.home) for source in link.sources.values()]
    near = [parameter for owner in owners if owner is not None for parameter in owner.parameters()]
    if isinstance(new, Parameter) and optimizers.all:
        optimizers.add((new, name), link.expression, sources, near)
    elif isinstance(new, Parameter):
        optimizers.news.append(News(new, name, near))


# -- optimizers that were not handed over -----------------------------------------------------------


class News:
    """A Parameter that a tie dropped or an untie made, for the optimizers that step after that."""

    def __init__(self, tensor: Tensor, text: str, near: Iterable[Tensor] | None = None) -> None:
        """Remember the tensor as long as it lives; `near` are Parameters beside which a new one ought to be stepped."""
        self.tensor, self.text, self.is_new = weakref.ref(tensor), text, near is not None
        self.near = [weakref.ref(each) for each in near or ()]
        self.seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def is_wrong(self, held: Collection[int]) -> bool | None:
        """Tell whether an optimizer that holds `held` is wrong about it; None where that cannot be said yet."""
        tensor = self.tensor()
        is_held = tensor is not None and id(tensor) in held
        if tensor is None or is_held is self.is_new:
            return False
        if not self.is_new:  # it is stepped for nothing, as soon as nothing gives it a gradient
            return None if tensor.grad is not None and bool(tensor.grad.any()) else True
        if not any(id(source) in held for ref in self.near if (source := ref()) is not None):
            return False
        return None if tensor.grad is None or not tensor.requires_grad else True


def _held_elsewhere(news: Sequence[News]) -> set[int]:
    """Return the ids of those Parameters that stand in a group of some other optimizer."""
    tensors = [tensor for each in news if (tensor := each.tensor()) is not None]
    lists = [found for found in gc.get_referrers(*tensors) if isinstance(found, list)] if tensors else []
    known = {id(found) for found in lists}
    holders = [found for found in gc.get_referrers(*lists) if isinstance(found, dict)] if lists else []
    groups = [found["params"] for found in holders if id(found.get("params")) in known]
    return {id(tensor) for group in groups for tensor in group}


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
    judged = [(news, news.is_wrong(held)) for news in waiting]
    dropped = [news for news, is_wrong in judged if is_wrong and not news.is_new]
    made = [news for news, is_wrong in judged if is_wrong and news.is_new]
    elsewhere = _held_elsewhere(made)
    lacking = [news for news in made if id(news.tensor()) not in elsewhere]
    for news, is_wrong in judged:
        if is_wrong is not None:
            news.seen.add(optimizer)
    _forget([news for news in waiting if news in dropped or news in lacking or (news.is_new and _is_in(news, held))])
    for said, word in ((dropped, _steps_dropped), (lacking, _lacks_new)):
        if said:
            warnings.warn(word([news.text for news in said]), TieWarning, stacklevel=3)


def _is_in(news: News, held: Collection[int]) -> bool:
    return id(news.tensor()) in held


def _steps_dropped(ties: Sequence[str]) -> str:
    return (
        f"The optimizer steps {_counted(ties)} that the model does not have any more, since {_some(ties)}: build it "
        "again from model.parameters(), or hand it over where you tie: tied.tie(..., optimizer=optimizer)."
    )


def _lacks_new(names: Sequence[str]) -> str:
    each = f"model.get_parameter({names[0]!r})" if len(names) == 1 else f"[model.get_parameter(n) for n in {[*names]}]"
    return (
        f"The optimizer does not step {_some([repr(name) for name in names])}, with {_counted(names)} of "
        f"{'its' if len(names) == 1 else 'their'} own since the untie: hand the optimizer over where you untie, "
        "tied.untie(..., optimizer=optimizer), or add what is new: "
        f"optimizer.add_param_group({{'params': {each}}})."
    )


def _counted(things: Sequence[str]) -> str:
    return "a Parameter" if len(things) == 1 else "Parameters"


def _some(things: Sequence[str]) -> str:
    return ", ".join(things[:3]) + (f" and {len(things) - 3} more" if len(things) > 3 else "")
