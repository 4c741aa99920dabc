"""The ledger: the ties of a model, as data.

Owns: `Tie`, and reading the ties off a model; the hands (`binding`) and the eyes (`checking`) both read here.
Must not change modules, nor know how a target reads its source. Read next: `binding/tie.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tied.algebra import Address, Expression, Ref, address_of, parse, show_address
from tied.algebra.parser import parse_address
from tied.errors import CycleError

LINKS = "_tied"  # the name under which a module keeps the links of its tied attributes
PLANT = "_tied_anchor"  # the name under which a module keeps what was declared with it as the home


def links(module: nn.Module) -> dict[str, Any]:
    """Return the links of a module's tied attributes, by attribute; empty where there are none."""
    return module.__dict__.get(LINKS) or {}


def declared(module: nn.Module) -> dict[str, str]:
    """Return the ties that were declared with `module` as their home, as texts; changes nothing."""
    return dict(getattr(module.__dict__.get(PLANT), "declared", {}))


def is_live(module: nn.Module, name: str) -> bool:
    """Tell whether a tied attribute stands in its module's slots, and holds there what its source holds."""
    held = [slots for slots in (module._parameters, module._buffers) if name in getattr(slots, "links", ())]
    return any(not slots.is_split(name) for slots in held)  # type: ignore[attr-defined]


def lost(home: nn.Module) -> dict[str, str]:
    """Return the ties that were declared with `home` as their home, and that no module inside reads any more."""
    found = declared(home)
    held = (link for module in home.modules() for link in links(module).values()) if found else ()
    kept = {show_address(link.place) for link in held if link.home is not None and link.home.module is home}
    return {target: source for target, source in found.items() if target not in kept}


@dataclass(frozen=True)
class Tie:
    """One equation `target = source`: an address, and the expression that it equals.

    Attributes:
        address: Of the target, segment by segment.
        source: What it equals.

    >>> tie = Tie(("decoder", "weight"), parse("encoder.weight.T"))
    >>> str(tie), tie.target
    ('decoder.weight = encoder.weight.T', 'decoder.weight')
    """

    address: Address
    source: Expression

    __module__ = "tied"

    @property
    def target(self) -> str:
        """The target as torch names it, for `model.get_parameter(tie.target)` and `untie(model, tie.target)`."""
        return ".".join(self.address)

    def __str__(self) -> str:
        """Print as an assignment."""
        return f"{show_address(self.address)} = {self.source}"

    def __repr__(self) -> str:
        """Print as a value."""
        return f"Tie({str(self)!r})"

    def to_json(self) -> dict[str, str]:
        """Return the tie as two texts."""
        return {"target": show_address(self.address), "source": str(self.source)}

    @classmethod
    def from_json(cls, data: Mapping[str, str]) -> Tie:
        """Read what `to_json` gave.

        Raises:
            ParseError: a text is not of the language.
        """
        return cls(parse_address(data["target"]), parse(data["source"]))


def ties(model: nn.Module) -> tuple[Tie, ...]:
    """Return the ledger of a model: its ties, with addresses as seen from `model`.

    A tie whose source lies outside `model` (when `model` is a part of something) is left out; a
    tied module that stands at two places is named by the first.

    Example:
        >>> model = nn.ModuleDict({"encoder": nn.Linear(3, 5), "decoder": nn.Linear(5, 3)})
        >>> from tied import tie
        >>> _ = tie(model, "decoder.weight", "encoder.weight.T")
        >>> ties(model)
        (Tie('decoder.weight = encoder.weight.T'),)
    """
    inner = None if isinstance(model, torch.jit.ScriptModule) else model._modules.get("_orig_mod")  # torch.compile's
    return tuple(tie for tie, _, _ in entries(model if inner is None else inner))


def entries(model: nn.Module) -> Iterator[tuple[Tie, nn.Module, Any]]:
    """Yield every tie of a model with the module that holds its target, and its link."""
    modules = [(address_of(path), module) for path, module in model.named_modules()]
    places: dict[int, Address] = {}
    for place, module in modules:
        places[id(module)] = places[id(module._parameters)] = place  # a shallow copy shares the latter
    for place, module in modules:
        for name, link in links(module).items():
            expression = _seen_from_here(link, places)
            if expression is not None:
                yield Tie((*place, name), expression), module, link


def _seen_from_here(link: Any, places: Mapping[int, Address]) -> Expression | None:
    definitions: dict[Address, Expression] = {}
    for address, source in link.sources.items():
        owner = source.look(link.home)
        place = places.get(id(owner), places.get(id(owner._parameters))) if owner is not None else None
        if place is None:
            return None
        definitions[address] = Ref((*place, address[-1]))
    return link.expression.substitute(definitions)


def cuts(model: nn.Module) -> Iterator[Tie]:
    """Yield the ties that were declared on a model and do not hold any more.

    Somebody gave the target a tensor of its own, reset the class of its module, or replaced the module.
    """
    for tie, module, _ in entries(model):
        if _is_cut(module, tie.address[-1]):
            yield tie
    for path, home in model.named_modules():
        place = address_of(path)
        for target, source in lost(home).items():
            tie = Tie(parse_address(target), parse(source))
            if _is_replaced(home, tie):
                seen = {address: Ref((*place, *address)) for address in tie.source.sources()}
                yield Tie((*place, *tie.address), tie.source.substitute(seen))


def _is_cut(module: nn.Module, name: str) -> bool:
    """Tell whether a tied attribute does not read its source: a live slot was split, or late reading is in the way."""
    places = (module._parameters, module._buffers)
    for slots in places:
        if name in getattr(slots, "links", ()):
            return slots.is_split(name)  # type: ignore[attr-defined]
    is_read = isinstance(getattr(type(module), name, None), property)
    return not is_read or any(isinstance(place.get(name), Tensor) for place in (*places, module.__dict__))


def _is_replaced(home: nn.Module, tie: Tie) -> bool:
    """Tell whether a target's module is another one by now, that reads nothing."""
    owner, name = module_at(home, tie.address[:-1]), tie.address[-1]
    if owner is None or name in links(owner) or not isinstance(getattr(owner, name, None), Tensor):
        return False  # it reads, or does not exist any more and needs no source
    if not isinstance(tie.source, Ref):
        return True
    source = module_at(home, tie.source.address[:-1])  # whose own tensor may have been handed over
    return source is None or getattr(owner, name) is not getattr(source, tie.source.address[-1], None)


def module_at(module: nn.Module, path: Address) -> nn.Module | None:
    """Return the module at a path; None where none is, or nothing in it can be tied (TorchScript)."""
    found: nn.Module | None = module
    for segment in path:
        if found is None or isinstance(found, torch.jit.ScriptModule):
            return None
        found = found._modules.get(segment)
    return found


# -- chains -----------------------------------------------------------------------------------------


def resolve(definitions: Mapping[Address, Expression]) -> dict[Address, Expression]:
    """Express every target by sources that are not targets themselves.

    Raises:
        CycleError: a target would define itself; the message shows the way round.
    """
    roots: dict[Address, Expression] = {}

    def root(target: Address, way: tuple[Address, ...]) -> Expression:
        if target in way:
            raise _cycle((*way[way.index(target) :], target))
        if target not in roots:
            expression = definitions[target]
            inner = {a: root(a, (*way, target)) for a in expression.sources() if a in definitions}
            roots[target] = expression.substitute(inner)
        return roots[target]

    for target in definitions:
        root(target, ())
    return roots


def _cycle(way: tuple[Address, ...]) -> CycleError:
    shown = [show_address(address) for address in way]
    if len(way) == 2:
        return CycleError(
            f"'{shown[0]}' would define itself.",
            found=f"'{shown[0]}' on both sides",
            expected="a source other than the target",
            fix="name the tensor that owns the memory as the source",
        )
    return CycleError(
        "These ties go round in a circle, so that none of them owns any memory.",
        found=" = ".join(shown),
        expected="at least one tensor that is not a target",
        fix="leave one of these ties out; tied.untie(model, target) undoes one that is in force",
    )
