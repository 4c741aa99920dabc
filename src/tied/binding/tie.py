"""Declaring ties: check everything, then act.

Owns: `tie`, `tie_layers`' engine, and every check that a declaration must pass. A call that fails leaves
the model bit for bit as it was. Read next: `untie.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tied.algebra import Address, Expression, Ref, invert, project, show_address
from tied.algebra.assembly import Gather
from tied.algebra.expression import Apply
from tied.algebra.projection import agree, is_sparse
from tied.binding.commit.transaction import Transaction, on_the_way
from tied.binding.equations import at_first_places, pair
from tied.binding.followers.adapters import watch_around
from tied.binding.followers.optimizers import Optimizers, let_go
from tied.binding.followers.transformers_keys import enter
from tied.binding.late_reading import install
from tied.binding.link import Link
from tied.binding.module_reference import plant
from tied.binding.slots import ModuleTree, Slot, links
from tied.binding.state_dict_hooks import attend, check_winner
from tied.errors import (
    ConflictError,
    DeviceError,
    DtypeError,
    KindError,
    ShapeError,
    TieError,
    TwiceTiedError,
    during,
)
from tied.ledger import Tie, entries, resolve

Keep = Literal["source", "target", "mean"]


def tie(
    model: nn.Module,
    target: Any,
    source: Any = None,
    *,
    keep: Keep = "source",
    buffers: bool = False,
    optimizer: Any = None,
) -> tuple[Tie, ...]:
    """Define tensors of `model` by others, from now on: `target = source`.

    After the call each target equals its expression at every read and owns no memory:

        value(target) == expression(value(source))        (exact)

    Gradients reach a source once, summed over every use. All or nothing: everything is checked first.

    Args:
        model: Changed in place, and only if every check passes.
        target: The address of a parameter (`"decoder.weight"`), of a module (every parameter in it), a pattern
            (`"layers.*.mlp"`), or several in a list. Without `source`: a whole equation, as ties are printed
            (`"decoder.weight = encoder.weight.T"`), a `Tie`, a list of these, or a dict of targets and sources.
        source: An expression, as text (`"encoder.weight.T"`) or as a value. A `*` in it takes what the
            `*` of the target stood for; without one it serves all targets.
        keep: Whose present values win: `"source"`, `"target"` (the source becomes what gives the target's
            value), or `"mean"` (the least-squares source for all of them).
        buffers: Whether modules tied as a whole share their buffers too (batch-norm statistics).
        optimizer: The optimizer that trains the model already, or a list of them: the targets' Parameters leave it,
            and a source that it does not hold takes their place. One that is not handed over says so when it steps.

    Returns:
        The ties, resolved to their root sources; one that is in force already stays as it is.

    Raises:
        AddressError: an address names nothing; the message names the nearest valid ones.
        ParseError: a text is not of the language.
        KindError: an address names a buffer, a module or a computed tensor where a parameter is needed.
        ShapeError: an expression does not give the target's shape; the message names a transform that would.
        DtypeError, DeviceError: source and target differ in dtype or device.
        CycleError: a tensor would define itself.
        TwiceTiedError: a target has a definition already.
        ConflictError, InverseError: `keep` asks for what no source can give.

    Example:
        >>> model = nn.ModuleDict({"encoder": nn.Linear(3, 5), "decoder": nn.Linear(5, 3)})
        >>> tie(model, "decoder.weight", "encoder.weight.T")
        (Tie('decoder.weight = encoder.weight.T'),)
        >>> model["decoder"]
        Linear(in_features=5, out_features=3, bias=True, weight=encoder.weight.T)

    Source:
        Press & Wolf 2017, arXiv:1608.05859, section 3 (tied embeddings); Vincent et al. 2010 (tied autoencoders).
    """
    words = repr(target) if source is None else f"{target!r}, {str(source)!r}"
    words = words if len(words) < 200 else words[:200] + "..."
    asked = ("" if keep == "source" else f", keep={keep!r}") + (", buffers=True" if buffers else "")
    with during(f"tie(model, {words}{asked})"):
        model = unwrapped(model)
        optimizers = Optimizers(optimizer, model)
        return declare(model, pair(model, target, source, buffers), optimizers, keep=keep, buffers=buffers)


def unwrapped(model: object) -> nn.Module:
    """Return the module behind `torch.compile`; refuse what cannot be tied.

    Raises:
        KindError: `model` is no module, or a TorchScript one, whose attributes are fixed.
    """
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise KindError(
            "Only modules of Python code can be tied.",
            found=type(model).__name__,
            expected="an nn.Module that is not scripted",
            fix="tie the module first, then trace or script it",
        )
    inner = model._modules.get("_orig_mod")
    return model if inner is None else inner


def declare(
    model: nn.Module, wanted: Sequence[Tie], optimizers: Optimizers | None = None, *, keep: Keep, buffers: bool
) -> tuple[Tie, ...]:
    """Check the wanted ties together, and put them in force together."""
    check_winner(keep or "")
    optimizers = optimizers or Optimizers()
    tree = ModuleTree(model)
    wanted = at_first_places(tree, wanted)
    present = {entry.address: entry.source for entry, _, _ in entries(model)}
    known = {t for t in wanted if t.address in present and t.source.substitute(present) == present[t.address]}
    asked = list(dict.fromkeys(wanted))
    wanted = [each for each in asked if each not in known]
    others = set[Address]()
    for each in wanted:
        _check_target(tree, each, others, buffers)
        others.add(each.address)
    roots = resolve(present | {each.address: each.source for each in wanted})
    new = [Tie(each.address, roots[each.address]) for each in wanted]
    for each in new:
        check_fit(tree, each)
    values = _winners(tree, new, keep)
    moved = [Tie(target, roots[target]) for target, source in present.items() if roots[target] != source]
    for each in new:
        dropped, sources = tree.slot(each.address).tensor, {a: tree.slot(a).tensor for a in each.source.sources()}
        let_go(each, dropped, sources, optimizers, won=keep == "target")
    _act(tree, [*new, *moved], values, optimizers)
    return tuple(Tie(each.address, roots[each.address]) for each in asked)


# -- checks -----------------------------------------------------------------------------------------


def _check_target(tree: ModuleTree, tie: Tie, others: set[Address], buffers: bool) -> None:
    slot, shown = tree.tensor_slot(tie.address), show_address(tie.address)
    if slot.kind == "tied" or tie.address in others:
        definition = links(slot.owner)[slot.name].expression if slot.kind == "tied" else "another source in this call"
        raise TwiceTiedError(
            f"'{shown}' is tied already.",
            found=f"{shown} = {definition}",
            expected="one definition for each target",
            fix=f"tied.untie(model, '{shown}') first" if slot.kind == "tied" else "leave one of the two out",
        )
    if slot.kind == "buffer" and not buffers:
        raise KindError(
            f"'{shown}' is a buffer, and buffers stay private unless you ask.",
            found=f"a buffer of {type(slot.owner).__name__}",
            expected="a parameter as the target",
            fix="share it on purpose: tie(..., buffers=True)",
        )
    if slot.kind == "computed":
        raise KindError(
            f"'{shown}' is computed, not a parameter, so it cannot be defined twice.",
            found=f"'{shown}' comes from a parametrization, pruning or a norm of {type(slot.owner).__name__}",
            expected="a plain parameter as the target",
            fix="remove that from the target first, or tie what it is computed from",
        )


def check_fit(tree: ModuleTree, tie: Tie) -> None:
    """Refuse an expression that does not give what the target is."""
    sources = {address: tree.tensor_slot(address) for address in tie.source.sources()}
    target = tree.tensor_slot(tie.address).tensor
    metas = {address: meta(slot.tensor) for address, slot in sources.items()}
    result = tie.source.infer(metas)
    if result.shape != target.shape:
        raise _misfit(tie, result, target, metas)
    if result.dtype != target.dtype:
        raise DtypeError(
            f"'{tie.source}' and '{show_address(tie.address)}' differ in dtype.",
            found=str(result.dtype),
            expected=str(target.dtype),
            fix=f"convert one of the modules, or read it as '{tie.source.to(target.dtype)}'",
        )
    _check_devices(tie, {address: slot.tensor.device for address, slot in sources.items()}, target.device)
    _check_indices(tie.source, sources)


def meta(tensor: Tensor) -> Tensor:
    """Return what a tensor is without its values."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def _misfit(tie: Tie, result: Tensor, target: Tensor, metas: Mapping[Address, Tensor]) -> ShapeError:
    found = f"({', '.join(map(str, result.shape))})"
    fitting = [str(e) for e in _candidates(tie.source, result, target) if _shape_of(e, metas) == target.shape]
    return ShapeError(
        f"'{tie.source}' does not have the shape of '{show_address(tie.address)}'.",
        found=f"shape {found}",
        expected=f"shape ({', '.join(map(str, target.shape))})",
        fix=f"did you mean '{fitting[0]}'?" if fitting else "use a transform that gives this shape",
    )


def _candidates(source: Expression, result: Tensor, target: Tensor) -> list[Expression]:
    """Return expressions near `source` that might give the target's shape, the likeliest first."""
    cuts = tuple(slice(0, want) for want in target.shape)
    tries = [source.T, source.mT]
    if result.dim() == target.dim() and all(w <= h for w, h in zip(target.shape, result.shape, strict=True)):
        while cuts and target.shape[len(cuts) - 1] == result.shape[len(cuts) - 1]:
            cuts = cuts[:-1]
        tries.append(source[cuts])
    if result.numel() == target.numel():
        tries.append(source.reshape(*target.shape))  # type: ignore[attr-defined]
    tries += [source.expand(*target.shape), source.unsqueeze(-1).expand(*target.shape)]  # type: ignore[attr-defined]
    return tries


def _shape_of(expression: Expression, metas: Mapping[Address, Tensor]) -> torch.Size | None:
    try:
        return expression.infer(metas).shape
    except ShapeError:
        return None


def _check_devices(tie: Tie, sources: Mapping[Address, torch.device], target: torch.device) -> None:
    found = tie.source.devices(sources) | {target}
    if len(found) > 1:
        raise DeviceError(
            f"'{show_address(tie.address)}' and what it is tied to live on different devices.",
            found=" and ".join(sorted(str(device) for device in found)),
            expected="one device",
            fix="give the meta part memory first: module.to_empty(device='cpu')"
            if "meta" in {device.type for device in found}
            else f'move the model to one device, or read the source with .to("{target}")',
        )


def _check_indices(expression: Expression, sources: Mapping[Address, Slot]) -> None:
    for node in expression.nodes():
        if not isinstance(node, Apply) or not isinstance(node.transform, Gather):
            continue
        loose = [a for a in node.operands[1].sources() if sources[a].kind == "computed"]
        if loose:
            raise KindError(
                f"The index '{show_address(loose[0])}' is a plain attribute, which no file of the model holds.",
                found="a tensor that is neither a buffer nor a parameter",
                expected="an integer buffer",
                fix=f"module.register_buffer('{loose[0][-1]}', index)",
            )
        tensors = {address: slot.tensor.detach() for address, slot in sources.items()}
        theta, index = (operand.value(tensors) for operand in node.operands)
        if index.device.type == "meta" or not index.numel():
            continue
        low, high = int(index.min()), int(index.max())
        if low < -1 or high >= theta.shape[0]:
            raise ShapeError(
                f"The index '{node.operands[1]}' points outside '{node.operands[0]}'.",
                found=f"values from {low} to {high}",
                expected=f"0 to {theta.shape[0] - 1}, or -1 for a zero",
                fix="correct the index buffer",
            )


# -- values -----------------------------------------------------------------------------------------


def _winners(tree: ModuleTree, new: Sequence[Tie], keep: Keep) -> dict[Address, Tensor]:
    """Return the values that sources must take before the ties come into force."""
    if keep == "source":
        return {}
    slots = {address: tree.slot(address) for each in new for address in each.source.sources()}
    tensors = {address: slot.tensor.detach() for address, slot in slots.items()}
    fixed = {address for address, slot in slots.items() if slot.kind == "buffer"}
    computed = [show_address(address) for address, slot in slots.items() if slot.kind == "computed"]
    if computed:
        raise KindError(
            f"'{computed[0]}' is computed, so it cannot take a value.",
            found=f"keep={keep!r}",
            expected="a plain parameter as the source",
            fix="keep='source', or remove the parametrization first",
        )
    uses = [(each.source, tree.slot(each.address).tensor.detach()) for each in new]
    own = [(Ref(address), tensor) for address, tensor in tensors.items() if address not in fixed]
    if keep == "mean":
        return project(uses + own, tensors, fixed)
    if all(is_sparse(expression, fixed) for expression, _ in uses) and len(uses) > 1:
        found = project(uses, tensors, fixed)
    else:
        found = {a: t for expression, value in uses for a, t in invert(expression, value, tensors, fixed).items()}
    _check_winners(new, uses, {**tensors, **found})
    return found


def _check_winners(
    new: Sequence[Tie], uses: Sequence[tuple[Expression, Tensor]], tensors: Mapping[Address, Tensor]
) -> None:
    for each, (expression, value) in zip(new, uses, strict=True):
        if not agree(expression.value(tensors), value, expression):
            raise ConflictError(
                "The targets ask for different values of one source.",
                found=f"no source keeps '{show_address(each.address)}' as it is",
                expected="targets that agree",
                fix='keep="mean" for the least-squares source, or keep="source"',
            )


# -- acting -----------------------------------------------------------------------------------------


def _act(tree: ModuleTree, ties: Sequence[Tie], values: Mapping[Address, Tensor], optimizers: Optimizers) -> None:
    """Write the values, install the links, tell the optimizers; all or nothing."""
    with Transaction(on_the_way(tree.model, ties)) as undo:
        prepared = [(each, tree.slot(each.address), *_link(tree.model, each)) for each in ties]
        for home in {id(home): home for *_, home in prepared}.values():
            plant(home).known.update(home.modules())
        names = dict[nn.Module, set[str]]()
        for _, slot, link, _ in prepared:
            names.setdefault(slot.owner, set[str]()).update(() if link.is_identity else (slot.name,))
        for address, value in values.items():
            tensor = tree.slot(address).tensor
            undo.keep(tensor)
            tensor.detach().copy_(value)
        for each, slot, link, home in prepared:
            if slot.kind == "tied":
                links(slot.owner)[slot.name].forget()
            _install(slot, link, names[slot.owner])
            link.remember()
            attend(home)
            if link.is_live:
                enter(tree.model, each)
            watch_around(tree.model, (slot.address, *each.source.sources()))
        attend(tree.model)
        undo.callback(optimizers.undo())
        optimizers.commit()


def _link(model: nn.Module, tie: Tie) -> tuple[Link, nn.Module]:
    """Make the link of a tie, with addresses from the innermost module that holds both ends."""
    paths = [tie.address[:-1], *(address[:-1] for address in tie.source.sources())]
    depth = 0
    while all(len(path) > depth for path in paths) and len({path[depth] for path in paths}) == 1:
        depth += 1
    home = model.get_submodule(".".join(tie.address[:depth]))
    near = {address: Ref(address[depth:]) for address in tie.source.sources()}
    link = Link.between(tie.source.substitute(near), home)
    link.place = tie.address[depth:]
    return link, home


def _install(slot: Slot, link: Link, also: Collection[str]) -> None:
    try:
        install(slot.owner, slot.name, link, also=also)
    except TypeError as error:
        raise _immutable(slot, error) from error


def _immutable(slot: Slot, error: TypeError) -> TieError:
    return KindError(
        f"The class of '{show_address(slot.address[:-1])}' cannot be extended.",
        found=f"{type(slot.owner).__name__}: {error}",
        expected="a module of an ordinary Python class",
        fix="tie before the module is converted to this class",
    )
