"""Meaning: sharing that is there, and does not mean what its ends are for.

Owns: the findings TIE201 to TIE207. Reads values only of an embedding that is a head too, and of rows that are
suspected to be equal. Read next: `check.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase  # batch and instance norms

from tied.checking.declarations import Seen
from tied.checking.patterns import is_readable
from tied.memory.overlap import PLAIN
from tied.reporting.facts import Finding, Group, quoted
from tied.reporting.rules import finding

_TABLES = (nn.Embedding, nn.EmbeddingBag)
_STATISTICS = ("running_mean", "running_var")
_ROWS, _WORDS = 32, 8192  # how many features, and how many rows of a head, the first loss is estimated from
_SEED = 7_411_009  # not one that people give: features from the seed of the weights would be rows of these


class End(NamedTuple):
    """One name of a group: the module that holds it, and the path of that module."""

    name: str
    path: str
    module: Any


def look_at_meaning(seen: Seen) -> Iterator[Finding]:
    """Yield what a model's sharing does that its parts do not expect."""
    has_tables, has_statistics = seen.inventory.has(*_TABLES), seen.inventory.has(_NormBase)
    for group in seen.groups:
        yield from _embedding(seen, group) if has_tables else ()
        yield from _frozen(seen, group) if group.state == "half-tied" else ()
        yield from _statistics(seen, group) if has_statistics else ()
    yield from _rows(seen)


def _end(seen: Seen, name: str) -> End:
    path = name.rpartition(".")[0]
    return End(name, path, seen.inventory.modules[path])


# -- embeddings ---------------------------------------------------------------------------------------


def _embedding(seen: Seen, group: Group) -> Iterator[Finding]:
    """Look at embeddings that share their weight with something that is not one."""
    if not any(isinstance(seen.inventory.owner(name), _TABLES) for name in group.names):
        return
    ends = [_end(seen, name) for name in group.names]
    others = [end for end in ends if not isinstance(end.module, _TABLES)]
    tables = [end for end in ends if end not in others and end.name.endswith("weight")]
    if not tables or not others:
        return
    other = others[0]
    for name, path, table in tables:
        weight = seen.inventory.tensor(name)
        if table.padding_idx is not None and weight is not None and weight.requires_grad:
            what = f"{path} keeps row {table.padding_idx} for padding, without a gradient; {other.name} gives it one."
            row = f"g.index_fill(0, torch.tensor([{table.padding_idx}]), 0)"
            yield finding(
                "TIE201",
                (name, other.name),
                what,
                f"model.get_parameter({quoted(name)}).register_hook(lambda g: {row})",
            )
        if table.max_norm is not None:
            what = f"{path} rescales rows to a norm of {table.max_norm:g} when it is read, in {other.name} too."
            yield finding("TIE202", (name, other.name), what, f"model.get_submodule({quoted(path)}).max_norm = None")
        if table.sparse:
            what = f"{path} gives a sparse gradient, and {other.name} a dense one, for one Parameter."
            yield finding("TIE203", (name, other.name), what, f"model.get_submodule({quoted(path)}).sparse = False")
    yield from _head(seen, tables[0], others)


def _head(seen: Seen, table: End, others: list[End]) -> Iterator[Finding]:
    weight = seen.inventory.tensor(table.name)
    heads = [end for end in others if isinstance(end.module, nn.Linear)]
    if weight is None or not heads or seen.pretrained or not _is_drawn_wide(weight):
        return
    loss, chance = first_loss(weight.detach()), math.log(weight.shape[0])
    if loss > 2 * chance:
        what = f"{table.name} is drawn from N(0, 1), which is too wide for {heads[0].name}: on features of unit"
        what += f" variance the first loss is {loss:.3g}, where guessing gives ln {weight.shape[0]} = {chance:.3g}."
        fix = f"torch.nn.init.normal_(model.get_parameter({quoted(table.name)}), std={weight.shape[1] ** -0.5:.3g})"
        yield finding("TIE204", (table.name, heads[0].name), what, fix)


def _is_drawn_wide(weight: Tensor) -> bool:
    """Tell whether a matrix looks as `nn.Embedding` draws it, from N(0, 1)."""
    if not is_readable(weight) or weight.dim() != 2 or weight.numel() < 256 or not weight.is_floating_point():
        return False
    some = weight.detach()[:_WORDS].float()
    return abs(float(some.std()) - 1) < 0.1 and abs(float(some.mean())) < 0.1 and float(some.abs().max()) < 7


def first_loss(weight: Tensor) -> float:
    """Measure the cross-entropy of a head on features drawn from N(0, 1), against labels drawn evenly."""
    generator = torch.Generator().manual_seed(_SEED)
    features = torch.randn(_ROWS, weight.shape[1], generator=generator, dtype=torch.float64)
    logits = features @ weight[:_WORDS].double().cpu().T
    missing = math.log(weight.shape[0] / logits.shape[1])
    return float((logits.logsumexp(1) + missing - logits.mean(1)).mean())


# -- gradients, statistics, symmetry ------------------------------------------------------------------


def _frozen(seen: Seen, group: Group) -> Iterator[Finding]:
    own = {name: tensor for name in group.names if isinstance(tensor := seen.inventory.tensor(name), nn.Parameter)}
    trained = [name for name, tensor in own.items() if tensor.requires_grad]
    frozen = [name for name in own if name not in trained]
    if trained and frozen:
        what = f"{trained[0]} is trained and {frozen[0]} is frozen, and they are one memory."
        yield finding(
            "TIE206", (trained[0], frozen[0]), what, f"model.get_parameter({quoted(trained[0])}).requires_grad_(False)"
        )


def _statistics(seen: Seen, group: Group) -> Iterator[Finding]:
    """Yield norms whose running statistics stand at several places."""
    ends = [_end(seen, name) for name in group.names if name.rpartition(".")[2] == "running_mean"]
    if len(ends) > 1 and all(isinstance(end.module, _NormBase) for end in ends):
        paths = [end.path for end in ends]
        what = f"{' and '.join(paths[:3])} update the same running statistics: in eval both use the average."
        yield finding("TIE205", paths, what, _fix_of_statistics(seen, *paths[:2]))


def _fix_of_statistics(seen: Seen, one: str, other: str) -> str:
    """Return what gives the second of two places statistics of its own, and keeps weight and bias tied."""
    modules = seen.inventory.modules
    if modules[one] is not modules[other]:
        return f"m = model.get_submodule({quoted(other)})" + "".join(f"; m.{n} = m.{n}.clone()" for n in _STATISTICS)
    while modules[outer := one.rpartition(".")[0]] is modules[another := other.rpartition(".")[0]] and outer != another:
        one, other = outer, another  # the outermost that stands at both
    copied = f"copy.deepcopy(model.get_submodule({quoted(one)}))"
    return (
        f"import copy; model.set_submodule({quoted(other)}, {copied}); tied.tie(model, {quoted(other)}, {quoted(one)})"
    )


def _rows(seen: Seen) -> Iterator[Finding]:
    """Yield layers all of whose units compute the same, now and after every step."""
    inventory = seen.inventory
    repeated = {inventory.names[place] for place in inventory.odd if _repeats(inventory.tensors[place])}
    for group in seen.groups if inventory.has_ties else ():
        repeated |= {name for name, what in zip(group.names, group.transforms, strict=True) if _is_expansion(what)}
    for name in sorted(repeated):
        _, path, module = _end(seen, name)
        if name.rpartition(".")[2] != "weight" or not isinstance(module, nn.Linear):
            continue
        if _is_even(module.bias) and _rows_are_equal(module.weight.detach()):
            what = f"Every unit of {path} has the same weights and bias, and gets the same gradient: they stay equal."
            fix = f"torch.nn.init.uniform_(model.get_submodule({quoted(path)}).bias, -0.1, 0.1)"
            if "bias" not in dict(module.named_parameters()):
                random = f"torch.empty({module.out_features}).uniform_(-0.1, 0.1)"
                fix = f"model.get_submodule({quoted(path)}).bias = torch.nn.Parameter({random})"
            yield finding("TIE207", (name,), what, fix)


def _repeats(tensor: Tensor) -> bool:
    is_matrix = type(tensor) in PLAIN and tensor.layout is torch.strided and tensor.dim() == 2
    return is_matrix and not tensor.is_nested and tensor.stride(0) == 0


def _is_expansion(transform: str) -> bool:
    return ".expand(" in transform or ".repeat(" in transform


def _is_even(bias: Tensor | None) -> bool:
    return bias is None or (is_readable(bias) and bool((bias == bias[:1]).all()))


def _rows_are_equal(weight: Tensor) -> bool:
    return is_readable(weight) and weight.shape[0] > 1 and bool((weight == weight[:1]).all())
