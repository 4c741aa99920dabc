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

LINKS = "_tied"  # the name under which a module keeps the links of its tied attributes
PLANT = "_tied_anchor"  # the name under which a module keeps what was declared with it as the home


def links(module: nn.Module) -> dict[str, Any]:
    """Return the links of a module's tied attributes, by attribute; empty where there are none."""
    return module.__dict__.get(LINKS) or {}


def declared(module: nn.Module) -> dict[str, str]:
    """Return the ties that were declared with `module` as their home, as texts; changes nothing."""
    return dict(getattr(module.__dict__.get(PLANT), "declared", {}))


def lost(home: nn.Module) -> dict[str, str]:
    """Return the ties that were declared with `home` as their home, and that no module inside reads any more."""
    found = declared(home)
    held = (link for module in home.modules() for link in links(module).values()) if found else ()
    kept = {show_address(link.place) for link in held if link.home is not None and link.home.module is home}
    return {target: source for target, source in found.items() if target not in kept}


@dataclass(frozen=True)
class Tie:
    """One equation `target = source`: an address, and the expression that it equals.

    >>> str(Tie(("decoder", "weight"), parse("encoder.weight.T")))
    'decoder.weight = encoder.weight.T'
    """

    target: Address
    source: Expression

    __module__ = "tied"

    def __str__(self) -> str:
        """Print as an assignment."""
        return f"{show_address(self.target)} = {self.source}"

    def __repr__(self) -> str:
        """Print as a value."""
        return f"Tie({str(self)!r})"

    def to_json(self) -> dict[str, str]:
        """Return the tie as two texts."""
        return {"target": show_address(self.target), "source": str(self.source)}

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
        name = tie.target[-1]
        places = (module._parameters, module._buffers, module.__dict__)
        is_read = isinstance(getattr(type(module), name, None), property)
        if not is_read or any(isinstance(place.get(name), Tensor) for place in places):
            yield tie
    for path, home in model.named_modules():
        place = address_of(path)
        for target, source in lost(home).items():
            tie = Tie(parse_address(target), parse(source))
            if _is_replaced(home, tie):
                seen = {address: Ref((*place, *address)) for address in tie.source.sources()}
                yield Tie((*place, *tie.target), tie.source.substitute(seen))


def _is_replaced(home: nn.Module, tie: Tie) -> bool:
    """Tell whether a target's module is another one by now, that reads nothing."""
    owner, name = _owner(home, tie.target), tie.target[-1]
    if owner is None or name in links(owner) or not isinstance(getattr(owner, name, None), Tensor):
        return False  # it reads, or does not exist any more and needs no source
    is_source = isinstance(tie.source, Ref) and tie.source.address[-1] == name
    return not (is_source and _owner(home, tie.source.sources()[0]) is owner)


def _owner(module: nn.Module, address: Address) -> nn.Module | None:
    found: nn.Module | None = module
    for segment in address[:-1]:
        found = found._modules.get(segment) if found is not None else None
    return found
