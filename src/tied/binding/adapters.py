"""Adapters (LoRA) on either end of a tie, as `peft` puts them around a layer.

Owns: what a source weighs under an adapter, and the refusal to merge an adapter into a target. Must not import
peft: its layers are known by what they have. Read next: `computed_source.py`.

Around the source, the target follows what the source's layer computes with: W and the adapter's change of it. So
merging changes nothing. Around the target, merging would write the change into the source, for all its uses.
"""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.utils.hooks import RemovableHandle

from tied.binding.slots import links
from tied.errors import KindError, WriteError


def is_adapter(module: nn.Module) -> bool:
    """Tell whether a module is an adapter around another, which it can merge into."""
    return "base_layer" in module._modules and callable(getattr(module, "merge", None))


def adapted(layer: Any, name: str, base: Tensor) -> Tensor:
    """Return what an adapted layer computes with, where its base holds `base`; dropout is left out.

    Raises:
        KindError: the adapter does more than add a change to the weight.
    """
    if layer.merged or layer.disable_adapters:
        return base
    known = {*getattr(layer, "lora_A", ()), *getattr(layer, "lora_embedding_A", ())}
    held = {adapter for part in layer.adapter_layer_names for adapter in getattr(layer, part)}
    active = [adapter for adapter in layer.active_adapters if adapter in held]
    for adapter in active:
        moves = name != "weight" and getattr(layer, "lora_bias", {}).get(adapter)
        if adapter not in known or adapter in getattr(layer, "lora_variant", {}) or moves:
            raise _unknown_change(layer, name)
    if name != "weight":
        return base
    changes = (layer.get_delta_weight(adapter).to(base.dtype) for adapter in active)
    return sum(changes, start=base)


@functools.cache
def notice_adapters() -> RemovableHandle:
    """From now on notice adapters that are put around tied layers, by torch's hook on registering modules."""
    return register_module_module_registration_hook(_notice)


def _notice(around: nn.Module, name: str, module: nn.Module | None) -> None:
    if name == "base_layer" and module is not None and links(module):
        watch(around)


def watch(adapter: nn.Module) -> None:
    """Have an adapter refuse to merge as long as its base is tied."""
    if callable(getattr(adapter, "merge", None)):
        adapter.__dict__["merge"] = functools.partial(merge, adapter)


def merge(layer: Any, *args: Any, **kwargs: Any) -> Any:
    """Merge an adapter into its base, unless that is tied.

    Raises:
        WriteError: it is: its source would change, for all uses.
    """
    for name, link in links(layer.get_base_layer()).items():
        error = WriteError(
            "An adapter around a tied layer cannot be merged: the change would go into the source, for all its uses.",
            found=f"{type(layer).__name__}.merge() where {name} = {link.expression}",
            expected="a layer with a weight of its own",
            fix="tied.untie(model, target) first, which keeps the source as it is; or put the adapter on the source",
        )
        error.changed = "Adapters of layers before this one may be merged by now; their unmerge() takes that back."
        raise error
    return type(layer).merge(layer, *args, **kwargs)


def _unknown_change(layer: nn.Module, name: str) -> KindError:
    return KindError(
        f"What this adapter makes of the source's '{name}' is not known, so that no target can follow it.",
        found=f"an active adapter in {type(layer).__module__}.{type(layer).__name__}",
        expected="plain LoRA, which adds a change to the weight",
        fix="call tied.untie(model, target) first, or put the adapter on a layer that is not tied",
    )
