"""Adapters (LoRA) on either end of a tie, as `peft` puts them around a layer.

Owns: what a source weighs under an adapter, and the refusal to merge an adapter into a tied weight. Must not import
peft: its layers are known by what they have. Read next: `binding/computed_source.py`.

An adapter belongs to the use that it was put on: a target of an adapted source reads the weight below the adapter,
as plain sharing does. Merging, around either end, would write the change of one use into all of them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any
from weakref import WeakSet

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.utils.hooks import RemovableHandle

from tied.algebra import Address
from tied.binding.module_reference import PLANT
from tied.binding.slots import links
from tied.errors import WriteError

LIVING: WeakSet[Any] = WeakSet()  # every link: an adapter is asked to merge without its model, where ties are found


def is_adapter(module: nn.Module) -> bool:
    """Tell whether a module is an adapter around another, which it can merge into."""
    return "base_layer" in module._modules and callable(getattr(module, "merge", None))


@functools.cache
def notice_adapters() -> RemovableHandle:
    """From now on notice adapters that are put around tied layers, by torch's hook on registering modules."""
    return register_module_module_registration_hook(_notice)


def _notice(around: nn.Module, name: str, module: nn.Module | None) -> None:
    if name == "base_layer" and module is not None and (links(module) or PLANT in vars(module)):
        watch(around)


def watch(adapter: nn.Module) -> None:
    """Have an adapter refuse to merge as long as its base is an end of a tie."""
    if callable(getattr(adapter, "merge", None)):
        adapter.__dict__["merge"] = functools.partial(merge, adapter)


def watch_around(model: nn.Module, addresses: Iterable[Address]) -> None:
    """Watch the adapters that are around the ends of a tie already."""
    for address in addresses:
        for depth, segment in enumerate(address):
            if segment == "base_layer":
                watch(model.get_submodule(".".join(address[:depth])))


def merge(layer: Any, *args: Any, **kwargs: Any) -> Any:
    """Merge an adapter into its base, unless that is tied.

    Raises:
        WriteError: it is: the change would reach all uses of the weight.
    """
    for base in layer.get_base_layer().modules():
        for what, ties in (("a tied layer", links(base).items()), ("the source of a tie", readers(base))):
            for name, link in ties:
                if not _is_shared(layer, link):
                    raise _not_merged(layer, what, f"{name} = {link.expression}")
    return type(layer).merge(layer, *args, **kwargs)


def _is_shared(layer: Any, link: Any) -> bool:
    """Tell whether an adapter leaves an identity as it is: peft's trainable tokens, which know what they share."""
    home = link.home.module if link.home is not None else None
    if not link.is_identity or home is None or not hasattr(layer, "trainable_tokens_delta"):
        return False
    if link.identity_name != "weight":
        return True
    known = getattr(layer, "tied_adapter", None)
    if known is not None:
        return known.get_base_layer() is link.identity_owner()
    others = (module for module in home.modules() if getattr(module, "tied_adapter", None) is layer)
    return link.target() in [other.get_base_layer() for other in others]


def readers(owner: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the attributes that read a tensor of a module now, each with its link."""
    for link in tuple(LIVING):
        target = link.target()
        held = links(target) if target is not None else {}
        names = [name for name, one in held.items() if one is link]
        if names and any(source.look(link.home) is owner for source in link.sources.values()):
            yield names[0], link


def _not_merged(layer: nn.Module, what: str, tie: str) -> WriteError:
    error = WriteError(
        f"An adapter around {what} cannot be merged: the change of one use would reach all of them.",
        found=f"{type(layer).__name__}.merge() where {tie}",
        expected="a layer with a weight of its own",
        fix="tied.untie(model, target) first, which leaves each end a weight of its own",
    )
    error.changed = "Adapters of layers before this one may be merged by now; their unmerge() takes that back."
    return error
