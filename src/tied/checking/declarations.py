"""Declarations: what is declared, compared with what is there.

Owns: the states `equal`, `drifted` and `declared` of declared ties, ties of `tied` that were cut, and sharing that
is not declared where it must be. Must not know how others declare: `library_ties.py` does.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from torch import Tensor

from tied.checking.groups import group_of, suffix
from tied.checking.inventory import Inventory
from tied.checking.library_ties import Pair, is_offloaded, pairs, rules, transformers_models, undone
from tied.checking.patterns import equal_values
from tied.ledger import cuts
from tied.memory import IDENTITY, OVERLAP
from tied.reporting.facts import Finding, Group, State, expression, quoted
from tied.reporting.rules import finding

WRAPPED = (".base_layer", ".original_module")  # where adapters put the layer that they wrap


@dataclass
class Seen:
    """What is there: the model, its tensors, and which names share memory.

    Attributes:
        inventory: The tensors of the model.
        groups: What shares memory.
    """

    inventory: Inventory
    groups: tuple[Group, ...]

    @cached_property
    def memory(self) -> dict[str, int]:
        """For every name, a number of the memory it stands for; names that share have the same."""
        memory = dict(self.inventory.places)
        for group in self.groups:
            memory.update(dict.fromkeys(group.names, memory.get(group.names[0], -1)))
        return memory

    @cached_property
    def pretrained(self) -> dict[str, Any]:
        """The models of transformers inside, by the prefix of their names."""
        return dict(transformers_models(self.inventory.modules))

    @cached_property
    def declared(self) -> list[Pair]:
        """What the models of transformers inside declare."""
        models = {prefix.removesuffix("."): module for prefix, module in self.pretrained.items()}
        return list(pairs(models, self.bare)) if models else []

    @cached_property
    def bare(self) -> Collection[str]:
        """The names as they were before adapters wrapped what holds them."""
        names = (name for name in self.memory if ".modules_to_save." not in name)
        return dict.fromkeys(name.replace(f"{WRAPPED[0]}.", ".").replace(f"{WRAPPED[1]}.", ".") for name in names)

    def present(self, name: str) -> list[str]:
        """Return the names under which a declared one is found: an adapter puts it elsewhere, or trains a copy."""
        owner, _, attribute = name.rpartition(".")
        copies = self.inventory.modules.get(f"{owner}.modules_to_save")
        inside = [*WRAPPED, *(f".modules_to_save.{key}" for key in (copies._modules if copies is not None else ()))]
        return [other for place in ("", *inside) if (other := f"{owner}{place}.{attribute}") in self.memory]


class Apart(NamedTuple):
    """Names that are declared one tensor and are several: as a group, the code of the finding, and who declares it.

    The code is empty where nothing is wrong.
    """

    group: Group
    code: str
    pair: Pair


def judge(seen: Seen) -> Iterator[Apart | Finding]:
    """Yield what is declared and not there, and what is wrong with declarations themselves."""
    yield from _cut(seen)
    yield from _pairs(seen)
    yield from _undeclared(seen) if seen.pretrained else ()
    for prefix, module in seen.pretrained.items():
        inside = [name.removeprefix(prefix) for name in seen.bare if name.startswith(prefix)]
        for rule in undone(module, inside):
            names = [f"{prefix}{rule.pairs[0][0]}", f"{prefix}{rule.pairs[0][1]}"]
            what = f"The rule '{rule.rule}' = '{rule.source}' of {type(module).__name__} is undone by a later rule"
            yield finding("TIE107", names, f"{what}: these two are not tied.")


def fix_of_half_tied(seen: Seen, group: Group, *, optimized: bool = False) -> str:
    """Return what makes one Parameter of several over one memory, or gives an odd one memory of its own.

    Args:
        seen: The model.
        group: Half-tied.
        optimized: Whether there is an optimizer, which has to go along.
    """
    if OVERLAP in group.transforms:
        odd = group.names[group.transforms.index(OVERLAP)]
        return f"p = model.get_parameter({quoted(odd)}); p.data = p.data.clone()"
    if optimized:
        return "tied.adopt(model, half_tied=True, optimizer=optimizer)"
    found = {other: pair for pair in seen.declared for name in pair[:2] for other in seen.present(name)}
    declared = next((found[name] for name in group.names if name in found), None)
    fix = _call_of_tie_weights(seen, declared.path) if declared else "tied.adopt(model, half_tied=True)"
    return f"{fix}  # then build the optimizer anew"


def _call_of_tie_weights(seen: Seen, path: str) -> str:
    """Let the outermost model of transformers around a path tie: it asks all inside."""
    around = [p for p, module in seen.pretrained.items() if f"{path}.".startswith(p) and hasattr(module, "tie_weights")]
    return f"{at(around[0].removesuffix('.') if around else path)}.tie_weights()"


def at(path: str) -> str:
    """Write what is at a path, as a line that is to be pasted begins."""
    return f"model.get_submodule({quoted(path)})" if path else "model"


# -- ties of `tied` -----------------------------------------------------------------------------------


def _cut(seen: Seen) -> Iterator[Apart]:
    for cut in cuts(seen.inventory.model) if seen.inventory.has_ties else ():
        target, sources = cut.target, [".".join(address) for address in cut.source.sources()]
        transforms = [IDENTITY, *["source"] * (len(sources) - 1), suffix(cut.source)]
        group = group_of("declared", [*sources, target], transforms, seen.inventory.tensor(sources[0]))
        yield Apart(group, "TIE109", Pair(target, sources[0], "tied", ""))


# -- pairs --------------------------------------------------------------------------------------------


def _pairs(seen: Seen) -> Iterator[Apart | Finding]:
    components: dict[str, list[str]] = {}
    origins: dict[str, Pair] = {}
    for pair in seen.declared:
        targets, sources = seen.present(pair.target), seen.present(pair.source)
        if not targets or not sources:
            names = [name for name, found in zip(pair[:2], (targets, sources), strict=True) if not found]
            what = f"{pair.origin} declares {pair.target} = {pair.source}, and has no {' and no '.join(names)}."
            yield finding("TIE108", pair[:2], what)
            continue
        ends = ((target, source) for target in targets for source in sources)
        target, source = next((e for e in ends if seen.memory[e[0]] == seen.memory[e[1]]), (targets[0], sources[0]))
        one = components.setdefault(source, [source])
        for name in components.get(target, [target]):
            if name not in one:
                one.append(name)
            components[name] = one
        origins[source] = origins[target] = pair
    for names in {id(names): names for names in components.values()}.values():
        distinct = list({seen.memory[name]: name for name in reversed(names)}.values())[::-1]
        if len(distinct) > 1:
            yield _apart(seen, distinct, origins[distinct[0]])


def _apart(seen: Seen, names: list[str], pair: Pair) -> Apart:
    """Say how tensors that are declared one, and are several, differ."""
    tensors = [tensor for name in names if (tensor := seen.inventory.tensor(name)) is not None]
    is_elsewhere = any(is_offloaded(seen.inventory.owner(name)) for name in names)
    state = "declared" if is_elsewhere else _state(tensors)
    code = {"equal": "TIE103", "drifted": "TIE102"}.get(state, "TIE104")
    code = "TIE501" if len({tensor.device for tensor in tensors}) > 1 else code
    group = group_of(state, names, [IDENTITY] * len(names), seen.inventory.tensor(names[0]))
    return Apart(group, "" if is_elsewhere else code, pair)


def apart_finding(seen: Seen, group: Group, code: str, pair: Pair) -> Finding:
    """Say what is wrong with a group that is declared one."""
    if code == "TIE109":
        what = f"The declared tie {group.names[-1]} = {expression(group, -1)} was cut from outside."
        return finding(code, group.names, what, 'tied.retie(model, keep="source")  # or keep="target"')
    also = f" (and {len(group.names) - 2} more)" if len(group.names) > 2 else ""
    what = {
        "TIE102": "and their values differ",
        "TIE103": "which are equal copies: training will part them",
        "TIE104": "which are two tensors",
        "TIE501": "which are copies on two devices",
    }[code]
    fix = _call_of_tie_weights(seen, pair.path)
    if code == "TIE102":
        fix += f"  # loses the target's values; to keep both: {at(pair.path)}.config.tie_word_embeddings = False"
    equation = " = ".join((*group.names[1:2], *group.names[:1]))
    return finding(code, group.names, f"{pair.origin} declares {equation}{also}, {what}.", fix)


def _state(tensors: list[Tensor]) -> State:
    """Compare tensors that are declared equal, by their values where they have any."""
    first, *others = tensors
    found = {equal_values(first, other) for other in others}
    return "declared" if None in found else "drifted" if False in found else "equal"


def _undeclared(seen: Seen) -> Iterator[Finding]:
    """Yield sharing by plain torch inside a model of transformers that its saving does not know."""
    known = {other for pair in seen.declared for name in pair[:2] for other in seen.present(name)}
    for group in seen.groups:
        own = [n for n in group.names if seen.inventory.tensor(n) is not None and not seen.inventory.is_target(n)]
        inside = [name for name in own if any(name.startswith(prefix) for prefix in seen.pretrained)]
        unknown = [name for name in inside if name not in known]
        if len(inside) > 1 and unknown and seen.inventory.is_parameter(own[0]) and group.state == "tied":
            what = f"{' and '.join(inside[:3])} are one tensor, which transformers does not know: saving refuses, or"
            what += " drops one, and loading draws it anew."
            yield finding("TIE106", inside, what, _fix_of_undeclared(seen, inside))


def _fix_of_undeclared(seen: Seen, names: list[str]) -> str:
    """Return the configuration that declares what is shared; where there is none, `tied` declares and saves it."""
    for prefix, module in seen.pretrained.items():
        inside = [name.removeprefix(prefix) for name in seen.bare if name.startswith(prefix)]
        ruled = {prefix + name for pair in rules(module, inside).items() for name in pair}
        if ruled.issuperset(names):
            return f"{at(prefix.removesuffix('.'))}.config.tie_word_embeddings = True"
    return "tied.adopt(model)  # and tied.save, which knows of it"
