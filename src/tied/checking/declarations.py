"""Declarations: what is declared, compared with what is there.

Owns: the states `equal`, `drifted` and `declared` of declared ties, ties of `tied` that were cut, and sharing that
is not declared where it must be. Must not know how others declare: `declared.py` does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from torch import Tensor, nn

from tied.checking.copies import equal_values
from tied.checking.declared import Pair, is_offloaded, pairs, transformers_models, undone
from tied.checking.groups import group_of, suffix
from tied.checking.report import IDENTITY, OVERLAP, Finding, Group, State, expression, quoted
from tied.checking.rules import finding
from tied.checking.shelf import Shelf
from tied.ledger import cuts

WRAPPED = (".base_layer", ".original_module")  # where adapters put the layer that they wrap


@dataclass
class Seen:
    """What is there: the model, its tensors, and which names share memory.

    Attributes:
        shelf: The tensors of the model.
        groups: What shares memory.
    """

    shelf: Shelf
    groups: tuple[Group, ...]

    @cached_property
    def memory(self) -> dict[str, int]:
        """For every name, a number of the memory it stands for; names that share have the same."""
        memory = dict(self.shelf.places)
        for group in self.groups:
            memory.update(dict.fromkeys(group.names, memory.get(group.names[0], -1)))
        return memory

    @cached_property
    def pretrained(self) -> dict[str, Any]:
        """The models of transformers inside, by the prefix of their names."""
        return dict(transformers_models(self.shelf.modules))

    def present(self, name: str) -> str | None:
        """Return the name under which a declared one is found, inside an adapter if need be; None where it is not."""
        owner, _, attribute = name.rpartition(".")
        found = (name, *(f"{owner}{inside}.{attribute}" for inside in WRAPPED))
        return next((other for other in found if other in self.memory), None)


class Apart(NamedTuple):
    """Names that are declared one tensor and are several: as a group, the code of the finding, and who declares it.

    The code is empty where nothing is wrong.
    """

    group: Group
    code: str
    origin: str


def judge(seen: Seen) -> Iterator[Apart | Finding]:
    """Yield what is declared and not there, and what is wrong with declarations themselves."""
    yield from _cut(seen)
    if not seen.pretrained:
        return
    declared = list(
        pairs({prefix.rstrip("."): module for prefix, module in seen.pretrained.items()}, seen.memory.keys())
    )
    yield from _pairs(seen, declared)
    yield from _undeclared(seen, declared)
    for prefix, module in seen.pretrained.items():
        inside = [name.removeprefix(prefix) for name in seen.memory if name.startswith(prefix)]
        for rule in undone(module, inside):
            names = [f"{prefix}{rule.pairs[0][0]}", f"{prefix}{rule.pairs[0][1]}"]
            what = f"The rule '{rule.rule}' = '{rule.source}' of {type(module).__name__} is undone by a later rule"
            yield finding("TIE107", names, f"{what}: these two are not tied.")


def fix_of_half_tied(seen: Seen, group: Group) -> str:
    """Return what makes one Parameter of several over one memory, or gives an odd one memory of its own."""
    if OVERLAP in group.transforms:
        odd = group.names[group.transforms.index(OVERLAP)]
        return f"p = model.get_parameter({quoted(odd)}); p.data = p.data.clone()"
    known = hasattr(seen.shelf.model, "tie_weights")
    return f"{'model.tie_weights()' if known else 'tied.adopt(model, half_tied=True)'}  # then build the optimizer anew"


# -- ties of `tied` -----------------------------------------------------------------------------------


def _cut(seen: Seen) -> Iterator[Apart]:
    for cut in cuts(seen.shelf.model) if seen.shelf.has_ties else ():
        target, sources = ".".join(cut.target), [".".join(address) for address in cut.source.sources()]
        transforms = [IDENTITY, *["source"] * (len(sources) - 1), suffix(cut.source)]
        yield Apart(
            group_of("declared", [*sources, target], transforms, seen.shelf.tensor(sources[0])), "TIE109", "tied"
        )


# -- pairs --------------------------------------------------------------------------------------------


def _pairs(seen: Seen, declared: Iterable[Pair]) -> Iterator[Apart | Finding]:
    components: dict[str, list[str]] = {}
    origins: dict[str, str] = {}
    for pair in declared:
        target, source = seen.present(pair.target), seen.present(pair.source)
        if target is None or source is None:
            names = [name for name, found in zip(pair[:2], (target, source), strict=True) if found is None]
            what = f"{pair.origin} declares {pair.target} = {pair.source}, and has no {' and no '.join(names)}."
            yield finding("TIE108", pair[:2], what)
            continue
        one = components.setdefault(source, [source])
        for name in components.get(target, [target]):
            if name not in one:
                one.append(name)
            components[name] = one
        origins[source] = origins[target] = pair.origin
    for names in {id(names): names for names in components.values()}.values():
        distinct = list({seen.memory[name]: name for name in reversed(names)}.values())[::-1]
        if len(distinct) > 1:
            yield from _apart(seen, distinct, origins[distinct[0]])


def _apart(seen: Seen, names: list[str], origin: str) -> Iterator[Apart]:
    """Say how tensors that are declared one, and are several, differ."""
    tensors = [seen.shelf.tensor(name) for name in names]
    owners = [seen.shelf.owner(name) for name in names]
    if any(is_offloaded(owner) for owner in owners):
        yield Apart(group_of("declared", names, [IDENTITY] * len(names), tensors[0]), "", origin)
        return
    state = _state([tensor for tensor in tensors if tensor is not None])
    several = len({tensor.device for tensor in tensors if tensor is not None}) > 1
    code = "TIE501" if several else {"equal": "TIE103", "drifted": "TIE102"}.get(state, "TIE104")
    yield Apart(group_of(state, names, [IDENTITY] * len(names), tensors[0]), code, origin)


def apart_finding(group: Group, code: str, origin: str) -> Finding:
    """Say what is wrong with a group that is declared one."""
    if code == "TIE109":
        what = f"The declared tie {group.names[-1]} = {expression(group, -1)} was cut from outside."
        return finding(code, group.names, what, 'tied.retie(model)  # or retie(model, keep="source")')
    also = f" (and {len(group.names) - 2} more)" if len(group.names) > 2 else ""
    what = {
        "TIE102": "and their values differ",
        "TIE103": "which are equal copies: training will part them",
        "TIE104": "which are two tensors",
        "TIE501": "which are copies on two devices",
    }[code]
    fix = "model.tie_weights()"
    if code == "TIE102":
        fix += "  # loses the target's values; to keep both: model.config.tie_word_embeddings = False"
    equation = " = ".join((*group.names[1:2], *group.names[:1]))
    message = f"{origin} declares {equation}{also}, {what}."
    return finding(code, group.names, message, fix)


def _state(tensors: list[Tensor]) -> State:
    """Compare tensors that are declared equal, by their values where they have any."""
    first, *others = tensors
    found = {equal_values(first, other) for other in others}
    return "declared" if None in found else "drifted" if False in found else "equal"


def _undeclared(seen: Seen, declared: list[Pair]) -> Iterator[Finding]:
    """Yield sharing by plain torch inside a model of transformers that its saving does not know."""
    prefixes = list(seen.pretrained)
    known = {seen.present(name) for pair in declared for name in pair[:2]}
    for group in seen.groups:
        own = [name for name in group.names if seen.shelf.tensor(name) is not None]
        inside = [name for name in own if any(name.startswith(prefix) for prefix in prefixes)]
        unknown = [name for name in inside if name not in known]
        is_parameter = isinstance(seen.shelf.tensor(own[0]), nn.Parameter) if own else False
        if len(inside) > 1 and unknown and is_parameter and group.state == "tied":
            what = f"{' and '.join(inside[:3])} are one tensor, which transformers does not know: saving refuses, or"
            fix = "model.config.tie_word_embeddings = True  # or tied.adopt(model) and tied.save"
            yield finding("TIE106", inside, f"{what} drops one, and loading draws it anew.", fix)
