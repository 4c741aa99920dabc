"""What is registered on modules, as torch's hooks report it: tensors at live slots, and what makes a source computed.

Owns: the refusal of another tensor at a live slot, which torch would put there in silence, and of tools around a model
that would take a layer for all that it computes with. Must not know how a slot
is judged. Read next: `binding/late_reading.py`.
"""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling
from torch.fx import GraphModule
from torch.nn import Parameter
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.nn.utils.parametrize import ParametrizationList
from torch.optim.swa_utils import AveragedModel
from torch.utils.hooks import RemovableHandle

from tied.algebra import Expression
from tied.binding.followers.adapters import LIVING, notice_adapters
from tied.binding.live.live_slots import Live, live_slots
from tied.binding.live.parted import ties_of
from tied.binding.live.states import is_same
from tied.binding.refusals import averaged_in_part, copied_in_part, hooked_by_layer, not_pruned, not_set
from tied.binding.target_tensor import refuse_registration
from tied.ledger import PLANT, links
from tied.sharding import is_sharded


def listen() -> None:
    """From now on see what is registered on modules: adapters around tied layers, values of ties, and live entries."""
    notice_adapters()
    refuse_registration()
    _attend_registrations()


@functools.cache
def _attend_registrations() -> tuple[RemovableHandle, ...]:
    """From now on refuse to set live entries to other tensors, and notice what is put on sources, by torch's hooks."""
    registered: Any = _registered  # what it returns takes the place of the value
    return (
        register_module_parameter_registration_hook(registered),
        register_module_buffer_registration_hook(registered),
        register_module_module_registration_hook(_notice_computed),
        register_module_module_registration_hook(_refuse_hooks_on_layers),
        register_module_module_registration_hook(_refuse_copies_of_parts),
    )


def _registered(module: nn.Module, name: str, value: Tensor | None) -> Tensor | None:
    _notice_computed(module, name, None)
    return _refuse_another(module, name, value)


def _notice_computed(module: nn.Module, name: str, value: nn.Module | None) -> None:
    """Judge live entries whose source becomes computed, before anybody freezes or converts their modules."""
    if PLANT in module.__dict__ or isinstance(value, ParametrizationList):
        for link in tuple(LIVING) if not is_dynamo_compiling() else ():
            target = link.target() if link.is_live else None
            slots: Any = target.__dict__.get(link.kind) if target is not None else None
            names = [each for each, one in slots.links.items() if one is link] if isinstance(slots, Live) else []
            for each in names:
                slots.is_in_accord(each)


def _refuse_hooks_on_layers(around: nn.Module, name: str, model: nn.Module | None) -> None:
    """Refuse to have Opacus hook the layers of a model, some of which compute with weights that others hold."""
    if name == "_module" and model is not None and type(around).__module__.partition(".")[0] == "opacus":
        late = [f"{n} = {link}" for m in model.modules() for n, link in _late(m)]
        if late:
            raise hooked_by_layer(type(around).__name__, late[0])


def _refuse_copies_of_parts(around: nn.Module, name: str, copied: nn.Module | None) -> None:
    """Refuse what torch does with the copy of a part, where only the copy has a tied weight as a Parameter."""
    is_average = name == "module" and isinstance(around, AveragedModel)
    if copied is not None and (is_average or isinstance(around, GraphModule) or type(around) is nn.Module):
        parted = [tie for module in copied.modules() for tie in ties_of(module)]
        if parted:
            raise averaged_in_part(parted[0]) if is_average else copied_in_part(parted[0])


def _late(module: nn.Module) -> list[tuple[str, Expression]]:
    return [(name, link.expression) for name, link in links(module).items() if not link.is_live]


def _refuse_another(module: nn.Module, name: str, value: Tensor | None) -> Tensor | None:
    """Refuse to set a live entry to another tensor, and to prune it.

    Returns:
        What is to be registered in place of `value`: the source's own tensor, where the two are the same.
    """
    base = name.removesuffix("_orig")
    slots = live_slots(module, base)
    if slots is None or value is None:
        return None
    if base != name:
        raise not_pruned(module, base)
    held, source = dict.get(slots, name), slots.verdict(name)[1]
    if value is held or value is source or source is None or is_sharded(value) or value.is_meta or source.is_meta:
        return None
    if type(value) in (Parameter, type(source)) and is_same(value, source):
        return source
    raise not_set(module, name, value)
