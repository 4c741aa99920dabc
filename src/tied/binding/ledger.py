"""The ledger: the ties of a model, as data.

Owns: `Tie`, reading the ties off a model, and resolving chains of ties to their roots.
Must not change modules. Read next: `declare.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from tied.algebra import Address, Expression, Ref, parse, show_address
from tied.algebra.parser import parse_address
from tied.binding.link import Link
from tied.binding.slots import links
from tied.errors import CycleError


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
    inner = model._modules.get("_orig_mod")  # what torch.compile wraps
    return tuple(tie for tie, _, _ in entries(model if inner is None else inner))


def entries(model: nn.Module) -> Iterator[tuple[Tie, nn.Module, Link]]:
    """Yield every tie of a model with the module that holds its target, and its link."""
    places: dict[int, Address] = {}
    for path, module in model.named_modules():
        for known in (module, module._parameters):  # a shallow copy shares the latter
            places[id(known)] = tuple(path.split(".")) if path else ()
    for path, module in model.named_modules():
        for name, link in links(module).items():
            expression = _seen_from_here(link, places)
            if expression is not None:
                yield Tie((*path.split("."), name) if path else (name,), expression), module, link


def _seen_from_here(link: Link, places: Mapping[int, Address]) -> Expression | None:
    definitions: dict[Address, Expression] = {}
    for address, source in link.sources.items():
        owner = source.find(link.home)
        place = places.get(id(owner), places.get(id(owner._parameters))) if owner is not None else None
        if place is None:
            return None
        definitions[address] = Ref((*place, address[-1]))
    return link.expression.substitute(definitions)


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
