"""Claims: which slots of a model claim to be functions of which others, from whatever source the claim comes.

Owns: reading claims off a model, whether they hold or not. Must not look whether they hold: `verify.py` does.
Read next: `reference.py`, which builds the model in which they hold by construction.

A model claims by holding one Parameter in several slots, by holding several over one memory, by ties of `tied`, by
`all_tied_weights_keys` of transformers, by writing to a Parameter in its forward; and its user may claim more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from tied.algebra import Expression, Ref, address_of, parse, ref, show_address
from tied.checking.library_ties import pairs
from tied.errors import AddressError, SharingError, nearest
from tied.ledger import cuts, entries, is_live, links
from tied.memory import OVERLAP
from tied.memory.overlap import overlapping
from tied.memory.view_relation import relation
from tied.proving.working_copy import reach

Origin = Literal["same", "memory", "tie", "transformers", "asked", "written"]
Read = Callable[[str], Tensor]


@dataclass(frozen=True)
class Claim:
    """One slot is a function of others.

    Attributes:
        target: The slot's name, as in `named_parameters`.
        sources: The names it is a function of.
        text: The function, as an expression of the language, or in words.
        value: Computes the target from what a reader of names gives.
        origin: Where the claim was read.
    """

    target: str
    sources: tuple[str, ...]
    text: str
    value: Callable[[Read], Tensor]
    origin: Origin

    @property
    def is_identity(self) -> bool:
        """Whether the target is one of the sources, as it is."""
        return len(self.sources) == 1 and self.text == shown(self.sources[0])


class Slots:
    """The parameter slots of a model, each once, under the first of its names.

    Attributes:
        owners: The module that holds each slot, and the attribute's name, by the slot's name.
    """

    def __init__(self, model: nn.Module) -> None:
        """Look at `model`, without changing it."""
        self.model = model
        self.owners: dict[str, tuple[nn.Module, str]] = {}
        for path, module in model.named_modules():
            names = [name for name, parameter in module._parameters.items() if parameter is not None]
            for name in (*names, *(name for name in links(module) if name not in names)):
                self.owners[f"{path}.{name}" if path else name] = (module, name)
        firsts = {id(module): path for path, module in model.named_modules()}
        twins = model.named_modules(remove_duplicate=False)
        self._paths = {path: firsts[id(module)] for path, module in twins}

    def __contains__(self, name: str) -> bool:
        """Tell whether a slot has this name, or this other name."""
        return self.first(name) in self.owners

    def first(self, name: str) -> str:
        """Return the first of the names of a slot."""
        path, _, attribute = name.rpartition(".")
        path = self._paths.get(path, path)
        return f"{path}.{attribute}" if path else attribute

    def holds(self, name: str) -> bool:
        """Tell whether a slot or a buffer has this name, so that it is no value that a module computes."""
        if name in self:
            return True
        path, _, attribute = name.rpartition(".")
        return path in self._paths and attribute in self.model.get_submodule(path)._buffers

    def tensor(self, name: str) -> Tensor:
        """Return what a slot, or a buffer, holds or reads now."""
        path, _, attribute = name.rpartition(".")
        module, attribute = self.owners.get(name) or (self.model.get_submodule(path), attribute)
        return getattr(module, attribute)

    def parameters(self) -> dict[str, Parameter]:
        """Return the slots that hold a Parameter of their own, in the order of `named_parameters`."""
        own = ((name, place) for name, place in self.owners.items() if not is_live(*place))
        held = {name: module._parameters.get(attribute) for name, (module, attribute) in own}
        return {name: parameter for name, parameter in held.items() if parameter is not None}


def claims(slots: Slots) -> Iterator[Claim]:
    """Yield what the model itself claims, from what is certain to what is only declared."""
    yield from _same(slots)
    yield from _over_one_memory(slots)
    yield from _declared_ties(slots)
    yield from _of_transformers(slots)


# -- one Parameter in several slots, several over one memory --------------------------------------------


def _same(slots: Slots) -> Iterator[Claim]:
    first: dict[int, str] = {}
    for name, parameter in slots.parameters().items():
        source = first.setdefault(id(parameter), name)
        if source != name:
            yield identity(name, source, "same")


def identity(target: str, source: str, origin: Origin) -> Claim:
    """Claim that two slots are one tensor."""
    return Claim(target, (source,), shown(source), lambda read: read(source), origin)


def _over_one_memory(slots: Slots) -> Iterator[Claim]:
    named: dict[int, tuple[str, Parameter]] = {}
    for name, parameter in slots.parameters().items():
        named.setdefault(id(parameter), (name, parameter))
    held = list(named.values())
    for positions in overlapping([parameter for _, parameter in held]):
        yield from _views([held[position] for position in positions])


def _views(group: list[tuple[str, Parameter]]) -> Iterator[Claim]:
    """Claim each tensor of a group to be a view of the first that covers all its memory, or of that memory itself."""
    start = min(tensor.data_ptr() for _, tensor in group)
    places = {name: (tensor.data_ptr() - start) // tensor.element_size() for name, tensor in group}
    length = max(places[name] + reach(tensor) for name, tensor in group)
    whole = {name: tensor for name, tensor in group if tensor.numel() == reach(tensor) == length}
    source = next(iter(whole), memory_of([name for name, _ in group]))
    for name, tensor in group:
        if source in whole and (tensor.shape, tensor.stride()) == (whole[source].shape, whole[source].stride()):
            yield from [] if name == source else [identity(name, source, "memory")]
        else:
            yield _view(name, source, _described(source, whole.get(source), tensor), (tensor, places[name]))


def memory_of(names: Iterable[str]) -> str:
    """Name the memory under several tensors none of which covers it."""
    return f"the memory of {' and '.join(names)}"


def _view(target: str, source: str, text: str, place: tuple[Tensor, int]) -> Claim:
    shape, stride, begin = place[0].shape, place[0].stride(), place[1]
    return Claim(target, (source,), text, lambda read: torch.as_strided(read(source), shape, stride, begin), "memory")


def _described(source: str, whole: Tensor | None, view: Tensor) -> str:
    transform = OVERLAP if whole is None else relation(whole, view)
    return f"part of {source}" if transform == OVERLAP else shown(source) + transform


# -- declared -------------------------------------------------------------------------------------------


def _declared_ties(slots: Slots) -> Iterator[Claim]:
    """Yield the ties of `tied` whose sources are slots, cut or not; computed sources are read by the tie itself."""
    for tie in dict.fromkeys((*(tie for tie, _, _ in entries(slots.model)), *cuts(slots.model))):
        if tie.target in slots and all(slots.holds(".".join(address)) for address in tie.source.sources()):
            yield expressed(slots, tie.target, tie.source, "tie")


def expressed(slots: Slots, target: str, expression: Expression, origin: Origin) -> Claim:
    """Claim that a slot is what an expression says."""
    names = {address: slots.first(".".join(address)) for address in expression.sources()}
    sources = tuple(dict.fromkeys(name for name in names.values() if name in slots))
    value = lambda read: expression.compile(lambda address: lambda: read(names[address]))()  # noqa: E731
    return Claim(slots.first(target), sources, str(expression), value, origin)


def _of_transformers(slots: Slots) -> Iterator[Claim]:
    """Yield what transformers' models declare, and can tie: names that exist, of one shape."""
    names = dict.fromkeys(name for name, _ in slots.model.named_parameters(remove_duplicate=False))
    for pair in pairs(slots.model, names | dict.fromkeys(slots.owners)):
        target, source = slots.first(pair.target), slots.first(pair.source)
        if target in slots and source in slots and slots.tensor(target).shape == slots.tensor(source).shape:
            yield identity(target, source, "transformers")


def asked(slots: Slots, ties: Mapping[str, str]) -> Iterator[Claim]:
    """Yield what the user claims: targets and expressions, as `tied.tie` takes them.

    Raises:
        AddressError: a name is that of no parameter of the model.
        SharingError: an expression does not have the shape of its target.
    """
    for target, source in ties.items():
        expression = parse(source)
        names = [".".join(ref(target).address), *(".".join(address) for address in expression.sources())]
        for name in names:
            if not slots.holds(name):
                raise unknown(slots, name)
        claim = expressed(slots, names[0], expression, "asked")
        value, held = claim.value(slots.tensor), slots.tensor(claim.target)
        if value.shape != held.shape:
            raise SharingError(
                f"'{target}' cannot be '{source}'.",
                found=f"shapes {tuple(held.shape)} and {tuple(value.shape)}",
                expected="one shape",
                fix="claim an expression that gives the target's shape",
            )
        yield claim


def unknown(slots: Slots, name: str) -> AddressError:
    """Word that a name leads to no parameter."""
    near = nearest(name, slots.owners)
    return AddressError(
        f"'{name}' is not a parameter of {type(slots.model).__name__}.",
        found="nothing there",
        expected="an address such as those of model.named_parameters()",
        fix=f"did you mean {near}?" if near else "list the names with dict(model.named_parameters())",
    )


# -- written in the forward -----------------------------------------------------------------------------


def written(slots: Slots, before: Mapping[str, Tensor]) -> Iterator[Claim]:
    """Yield a claim for each Parameter that a forward overwrote with another one, as it is or transposed.

    That is what a hook does that copies a weight. A frozen one is claimed to be detached.

    Args:
        slots: Of a model after a forward.
        before: The values of its Parameters before that.
    """
    parameters = slots.parameters()
    changed = [name for name, parameter in parameters.items() if not same(parameter, before[name])]
    for target in changed:
        others = ((name, parameter) for name, parameter in parameters.items() if name not in changed)
        copies = (copy_of(parameters[target], tensor, name) for name, tensor in others)
        expression = next((copy for copy in copies if copy is not None), None)
        if expression is not None:
            is_trained = parameters[target].requires_grad
            claim = expressed(slots, target, expression if is_trained else expression.detach(), "written")
            yield replace(claim, value=lambda read, claim=claim: claim.value(read).clone())


def same(one: Tensor, other: Tensor) -> bool:
    """Tell whether two tensors have equal shapes and values, whatever their dtypes."""
    return one.shape == other.shape and torch.equal(one.to(other.dtype), other)


def copy_of(target: Tensor, source: Tensor, name: str) -> Expression | None:
    """Return the expression of a source that a target has the values of, as it is or transposed; None if neither."""
    address = Ref(address_of(name))
    if same(target, source):
        return address
    return address.T if target.dim() == source.dim() == 2 and same(target, source.mT) else None


def shown(name: str) -> str:
    """Return a slot's name as the language writes it; other names as they are."""
    return name if " " in name else show_address(address_of(name))
