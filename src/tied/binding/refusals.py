"""What is refused at a tied attribute, in words: setting, deleting, pruning, cloning and reading it from nowhere.

Owns: the errors that a tied module raises, each with a way out. Must not decide when. Read next: `live/live_slots.py`.
"""

from __future__ import annotations

from torch import Tensor, nn

from tied.algebra import Address, address_of, show_address
from tied.binding.link import Link
from tied.binding.slots import links
from tied.errors import ConflictError, KindError, SourceGoneError, WriteError


def not_set(module: nn.Module, name: str, value: object) -> WriteError:
    """Refuse to set a tied attribute to something else than its source, or to delete it (None)."""
    what = type(value).__name__ if isinstance(value, Tensor) else repr(value)
    return _not_written(links(module)[name], name, module, f"{what} was assigned")


def not_deleted(link: Link, name: str) -> WriteError:
    """Refuse to take a tied entry out of its module."""
    return _not_written(link, name, link.target(), "its slot was to be emptied")


def _not_written(link: Link, name: str, module: nn.Module | None, found: str) -> WriteError:
    address = where(module, name, link)
    return WriteError(
        f"'{address}' is tied and owns no memory, so it cannot be set or deleted.",
        found=f"{address} = {link.expression}; {found}",
        expected="an assignment to the source",
        fix=f"assign to the source, or give the attribute a Parameter of its own: tied.untie(model, '{address}')",
    )


def not_pruned(module: nn.Module, name: str) -> KindError:
    """Refuse to prune a tied attribute."""
    link = links(module)[name]
    address = where(module, name, link)
    return KindError(
        f"'{address}' is tied, so that it cannot be pruned here.",
        found=f"{address} = {link.expression}; '{name}_orig' was registered",
        expected="a Parameter of the module's own",
        fix=f"prune the source, which all uses then follow, or call tied.untie(model, '{address}') first",
    )


def two_values(link: Link) -> ConflictError:
    """Refuse to choose between what was written to a target and what its source holds."""
    address = show_address(link.place or link.expression.sources()[0])
    return ConflictError(
        f"'{address}' was given a value of its own that differs from its source's.",
        found=f"{address} = {link.expression} does not hold",
        expected="the name of the value to keep",
        fix='tied.retie(model, keep="source") or tied.retie(model, keep="target")',
    )


def cloned(module: nn.Module, name: str, link: Link) -> SourceGoneError:
    """Refuse to read a tie from a module that is not the one that was tied."""
    return SourceGoneError(
        f"'{name}' of this {type(module).__name__} belongs to the module that it was cloned from.",
        found=f"{name} = {link.expression}, in a module made anew over a copied __dict__",
        expected="the module that was tied, or a copy of it by copy.deepcopy or copy.copy",
        fix="use torch.func.functional_call; or first tied.alias(model), for identities, or tied.untie(model)",
    )


def on_meta(module: nn.Module, name: str, link: Link) -> SourceGoneError:
    """Refuse to read from the meta device beside real tensors."""
    address = where(module, name, link)
    return SourceGoneError(
        f"'{address}' reads a source on the meta device, which has no values.",
        found=f"{address} = {link.expression}, on meta, beside tensors that are not",
        expected="the source in memory",
        fix="move the model as a whole, or give the source memory: module.to_empty(device='cpu') and load",
    )


def hooked_by_layer(tool: str, tie: str) -> KindError:
    """Refuse per-sample gradients by hooks on layers, where a layer computes with a weight that it does not hold."""
    return KindError(
        f"{tool} takes gradients from each layer for its own Parameters, and would miss uses of a tied weight.",
        found=tie,
        expected="ties of a weight as it is, which count as plain sharing does",
        fix="torch.func.vmap(torch.func.grad(...)) over functional_call, which is right; or tied.untie(model) first",
    )


def averaged_in_part(tie: str) -> KindError:
    """Refuse to average a part of a model that reads a source outside of it."""
    return KindError(
        "An average of this part would go astray: its copy has the weight as one Parameter more.",
        found=f"AveragedModel of a part with {tie}",
        expected="a model that holds both ends of its ties",
        fix="average the model: AveragedModel(model), whose part then is the average; or tied.untie(model) first",
    )


def copied_in_part(tie: str) -> KindError:
    """Refuse to copy a graph that does not hold all that a tied weight in it is computed from."""
    return KindError(
        "A copy of this graph would train apart: the graph does not hold all that a tied weight is computed from.",
        found=f"a layer with {tie}",
        expected="a graph that holds every source of its ties",
        fix="copy the model, and trace the copy; or call tied.untie(model) first",
    )


def where(module: nn.Module | None, name: str, link: Link) -> str:
    """Return the address of a tied attribute as seen from its home, or its class where there is none."""
    home = link.home.module if link.home is not None else None
    place: Address = link.place[:-1]
    if module is not None:
        paths = (path for path, other in home.named_modules() if other is module) if home is not None else iter(())
        place = next(map(address_of, paths), (module._get_name(),))
    return show_address((*place, name))
