"""Pairing: from what the user wrote (text, dict, modules, patterns) to single equations between tensors.

Owns: which target gets which source. Must not check shapes nor change modules. Read next: `tie.py`.

The rule for patterns: `*` stands for a part of one segment, `**` for any number of segments. What each `*`
of the target stood for is put into the `*` of the source, in order; a source without `*` serves all targets.
A match that is the source itself is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from torch import nn

from tied.algebra import Address, Expression, Ref, parse, show_address
from tied.algebra.parser import parse_address
from tied.binding.slots import ModuleTree, Slot
from tied.errors import AddressError, CycleError, KindError, ParseError, ShapeError, TieError
from tied.ledger import Tie

WILD_SOURCE = re.compile(r"(?:(?<=\.)|^)\*(?=[.\[]|$)|(?<=\[)\*(?=\])")
EQUATION = re.compile(r"""((?:[^="']|"[^"]*"|'[^']*')+)=(.+)""", re.DOTALL)  # a quoted name may hold a "="


def pair(model: nn.Module, target: Any, source: Any, buffers: bool) -> list[Tie]:
    """Return one tie for every tensor that the user's words mean.

    Args:
        model: Where addresses are looked up.
        target: An address, a pattern, a whole equation, a dict of targets and sources, or a list of these.
        source: An expression or its text; None where `target` holds the sources too.
        buffers: Whether whole modules share their buffers too.
    """
    tree = ModuleTree(model)
    found = [tie for each in _sides(target, source) for tie in _pair_one(tree, *each, buffers=buffers)]
    if not found:
        raise _words("no targets", "at least one")
    return found


def _sides(target: Any, source: Any) -> list[tuple[Any, Any]]:
    """Return the two sides of every equation that is meant: of one, of a dict, of a list, or of a printed tie."""
    if isinstance(target, Mapping):
        if source is not None:
            raise _words("a dict and a source", "a dict alone: {'decoder.weight': 'encoder.weight.T'}")
        return list(target.items())
    if isinstance(target, list):
        return [sides for each in target for sides in _sides(each, source)]
    if isinstance(target, Tie) and source is None:
        return [(target.address, target.source)]
    equation = EQUATION.fullmatch(target) if isinstance(target, str) and source is None else None
    return [(equation[1].strip(), equation[2].strip()) if equation else (target, source)]


def _words(found: str, expected: str) -> KindError:
    return KindError(
        "The target and the source are not what tie takes.",
        found=found,
        expected=expected,
        fix="tie(model, 'decoder.weight', 'encoder.weight.T')",
    )


def _pair_one(tree: ModuleTree, target: Any, source: Any, *, buffers: bool) -> Iterator[Tie]:
    target = show_address(target) if isinstance(target, tuple) else str(target) if isinstance(target, Ref) else target
    if not isinstance(target, str) or not isinstance(source, str | Expression):
        raise _words(f"{type(target).__name__} and {type(source).__name__}", "two texts")
    if "*" not in target:
        yield from _expand(tree, _target(tree, target, source), _source(tree, source), buffers)
        return
    matches = list(_matches(tree, target, source, buffers))
    if not matches:
        raise AddressError(
            f"The pattern '{target}' matches nothing in {tree.title} besides its source.",
            found="no module and no parameter of that form",
            expected="a pattern such as 'layers.*.mlp', where * is a part of one name",
            fix="list the names with dict(model.named_parameters())",
        )
    for address, expression in matches:
        yield from _expand(tree, address, expression, buffers)


def _target(tree: ModuleTree, target: str, source: str | Expression) -> Address:
    """Read the address of a target; where it is a transform and the source an address, say that they are swapped."""
    try:
        return parse_address(target, tree)
    except ParseError as error:
        with suppress(TieError):
            if not isinstance(parse(target, tree), Ref) and isinstance(_source(tree, source), Ref):
                error.fix = f"the target comes first, as in an assignment: tie(model, '{source}', '{target}')"
        raise


def _source(tree: ModuleTree, source: str | Expression) -> Expression:
    return parse(source, tree) if isinstance(source, str) else source


def _matches(
    tree: ModuleTree, pattern: str, source: str | Expression, buffers: bool
) -> Iterator[tuple[Address, Expression]]:
    regex = _regex(pattern)
    for slot in tree.slots():
        found = regex.fullmatch(".".join(slot.address))
        if not found or (slot.kind == "buffer" and not buffers):
            continue
        expression = _source(tree, _fill(source, found.groups()) if isinstance(source, str) else source)
        is_module = isinstance(expression, Ref) and tree.slot(expression.address).kind == "module"
        if (slot.kind == "module") == is_module and expression != Ref(slot.address):
            yield slot.address, expression


def _regex(pattern: str) -> re.Pattern[str]:
    dotted = re.sub(r"\[\s*['\"]?([^\]'\"]*)['\"]?\s*\]", r".\1", pattern)
    parts = re.split(r"(\*\*|\*)", dotted)
    wild = {"**": "(.*)", "*": "([^.]*)"}
    return re.compile("".join(wild.get(part, re.escape(part)) for part in parts))


def _fill(source: str, groups: tuple[str, ...]) -> str:
    wild = len(WILD_SOURCE.findall(source))
    if wild == 0:
        return source
    if wild != len(groups):
        raise ParseError(
            "The patterns do not correspond.",
            found=f"{len(groups)} * in the target, {wild} in the source '{source}'",
            expected="as many in the source as in the target, or none",
            fix="tie(model, 'decoder.*.weight', 'encoder.*.weight')",
        )
    rest = iter(groups)
    return WILD_SOURCE.sub(lambda _: next(rest), source)


def _expand(tree: ModuleTree, target: Address, source: Expression, buffers: bool) -> Iterator[Tie]:
    slot = tree.slot(target)
    if slot.kind != "module":
        yield Tie(target, source)
        return
    if not isinstance(source, Ref):
        raise KindError(
            f"'{show_address(target)}' is a module, and '{source}' is not one.",
            found=f"a transform for {type(slot.owner).__name__}",
            expected="a module as the source of a module",
            fix=f"tie its tensors one by one: tie(model, '{show_address(target)}.weight', ...)",
        )
    yield from module_ties(tree, slot, tree.slot(source.address), buffers)


def module_ties(tree: ModuleTree, target: Slot, source: Slot, buffers: bool) -> Iterator[Tie]:
    """Yield a tie for every parameter (and buffer, where asked) of one module, to its namesake in another.

    Raises:
        KindError: the source is not a module.
        ShapeError: the two modules do not have the same names.
    """
    if source.kind != "module":
        raise KindError(
            f"'{show_address(target.address)}' is a module, and '{show_address(source.address)}' is not one.",
            found=f"a {source.kind} as the source",
            expected="a module as the source of a module",
            fix=f"tie tensor to tensor: tie(model, '{show_address(target.address)}.weight', ...)",
        )
    wanted, offered = _tensors(tree, target, buffers), _tensors(tree, source, buffers)
    if set(wanted) != set(offered):
        _different(target, source, set(wanted), set(offered))
    for name, slot in wanted.items():
        if slot.kind != "tied" and target.address != source.address:
            yield Tie(slot.address, Ref((*source.address, *name)))


def _tensors(tree: ModuleTree, module: Slot, buffers: bool) -> dict[Address, Slot]:
    """Return the tensors below a module; what it computes follows the Parameters that it computes it from."""
    depth = len(module.address)
    return {
        slot.address[depth:]: slot
        for slot in tree.slots(module.address)
        if slot.kind in ("parameter", "tied") or (buffers and slot.kind == "buffer")
    }


def _different(target: Slot, source: Slot, wanted: set[Address], offered: set[Address]) -> None:
    only = {show_address(target.address): wanted - offered, show_address(source.address): offered - wanted}
    found = "; ".join(
        f"only '{place}' has {', '.join(sorted(map(show_address, names))[:4])}"
        for place, names in only.items()
        if names
    )
    raise ShapeError(
        f"'{show_address(target.address)}' and '{show_address(source.address)}' are not built alike.",
        found=found,
        expected="the same names in both modules",
        fix="tie the parts that they have in common, one by one or by a pattern",
    )


def at_first_places(tree: ModuleTree, ties: Sequence[Tie]) -> list[Tie]:
    """Name every tensor by the first place of its module, since one module may stand at several.

    Raises:
        CycleError: target and source are one tensor by two names; a tie would leave none.
    """
    places = {id(module): path for path, module in tree.model.named_modules()}

    def first(address: Address) -> Address:
        slot = tree.tensor_slot(address)
        path = places[id(slot.owner)]
        return (*path.split("."), slot.name) if path else (slot.name,)

    found: list[Tie] = []
    for tie in ties:
        target, sources = first(tie.address), {address: Ref(first(address)) for address in tie.source.sources()}
        same = [address for address in sources if sources[address] == Ref(target) and address != tie.address]
        if same:
            raise _one_tensor(tie.address, same[0], tree)
        found.append(Tie(target, tie.source.substitute(sources)))
    return found


def _one_tensor(target: Address, source: Address, tree: ModuleTree) -> CycleError:
    return CycleError(
        f"'{show_address(target)}' and '{show_address(source)}' are one tensor already.",
        found=f"one {type(tree.slot(target).owner).__name__} that stands at both places",
        expected="a source other than the target",
        fix="leave this tie out",
    )
