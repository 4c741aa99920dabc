"""Slots: the places of tensors and modules in a model, found by address.

Owns: looking things up in a module tree. Must not change anything. Read next: `link.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from tied.algebra import Address, show_address
from tied.errors import AddressError, KindError, nearest
from tied.ledger import LINKS as LINKS, links as links, module_at


class Slot(NamedTuple):
    """What stands at an address: a module, or an attribute of one that holds a tensor."""

    address: Address
    owner: nn.Module
    kind: str  # "parameter", "buffer", "tied", "computed" or "module"

    @property
    def name(self) -> str:
        """The attribute's name on its owner."""
        return self.address[-1]

    @property
    def tensor(self) -> Tensor:
        """The tensor that stands here now."""
        return getattr(self.owner, self.name)


class ModuleTree:
    """The names of a model, as the parser asks for them."""

    def __init__(self, model: nn.Module) -> None:
        """Look at `model`, without changing it."""
        self.model = model

    @property
    def title(self) -> str:
        """The class of the model."""
        return type(self.model).__name__

    def names(self, address: Address) -> Collection[str] | None:
        """Return the names directly under the module at `address`; None where no module is."""
        module = module_at(self.model, address)
        return None if module is None else [name for name, _ in _children(module)]

    def slot(self, address: Address) -> Slot:
        """Return what stands at `address`.

        Raises:
            AddressError: nothing does.
        """
        owner = module_at(self.model, address[:-1]) if address else None
        kind = None if owner is None else _kind(owner, address[-1])
        if owner is None or kind is None:
            near = nearest(show_address(address), (show_address(slot.address) for slot in self.slots()))
            raise AddressError(
                f"'{show_address(address)}' is not a parameter, buffer or module of {self.title}.",
                found="nothing there" if address else "an empty address",
                expected="an address such as those of model.named_parameters()",
                fix=f"did you mean {near}?" if near else "list the names with dict(model.named_parameters())",
            )
        module = owner._modules.get(address[-1])
        return Slot(address, owner if module is None else module, kind)

    def slots(self, below: Address = ()) -> Iterator[Slot]:
        """Yield every slot below an address, modules included, in the order of `named_parameters`."""
        module = module_at(self.model, below)
        for name, kind in _children(module) if module is not None else ():
            child = module._modules[name] if module is not None and kind == "module" else module
            assert child is not None
            yield Slot((*below, name), child, kind)
            if kind == "module":
                yield from self.slots((*below, name))

    def tensor_slot(self, address: Address) -> Slot:
        """Return the tensor's slot at `address`.

        Raises:
            AddressError: nothing is there.
            KindError: a module is there, or a parameter of a lazy module that has no shape yet.
        """
        slot = self.slot(address)
        shown = show_address(address)
        if slot.kind == "module":
            raise KindError(
                f"'{shown}' is a module, where a tensor is needed.",
                found=type(slot.owner).__name__,
                expected=f"a tensor such as '{shown}.weight'",
                fix="name a tensor, or tie module to module: tie(model, 'tower_b', 'tower_a')",
            )
        if isinstance(slot.tensor, UninitializedParameter | UninitializedBuffer):
            raise KindError(
                f"'{shown}' has no shape yet.",
                found=f"an uninitialized tensor of {type(slot.owner).__name__}",
                expected="an initialized one",
                fix="run one forward through the model, then tie",
            )
        return slot


_PROPERTIES: WeakKeyDictionary[type[nn.Module], tuple[str, ...]] = WeakKeyDictionary()


def _properties(kind: type[nn.Module]) -> tuple[str, ...]:
    """Return the names under which a class computes tensors, as its properties say: `def weight(self) -> Tensor`."""
    if kind in _PROPERTIES:
        return _PROPERTIES[kind]
    found: dict[str, None] = {}
    for name in dir(kind):
        getter = getattr(getattr(kind, name, None), "fget", None)
        if getattr(getter, "__annotations__", {}).get("return") in (Tensor, "Tensor", "torch.Tensor"):
            found[name] = None
    return _PROPERTIES.setdefault(kind, tuple(found))


def _holds(module: nn.Module, name: str) -> bool:
    return any(name in place for place in (module._parameters, module._buffers, links(module)))


def _kind(module: nn.Module, name: str) -> str | None:
    """Return what `_children` says of one name."""
    if isinstance(module, torch.jit.ScriptModule):
        return None
    if module._modules.get(name) is not None:
        return "module"
    parametrized = module._modules.get("parametrizations")
    is_parametrized = isinstance(parametrized, nn.ModuleDict) and name in parametrized
    is_computed = name in _properties(type(module)) and not _holds(module, name)
    if is_computed or is_parametrized or isinstance(module.__dict__.get(name), Tensor):
        return "computed"
    if name in _in_force(module):
        return "tied"
    if module._buffers.get(name) is not None:
        return "buffer"
    return "parameter" if module._parameters.get(name) is not None else None


def _in_force(module: nn.Module) -> list[str]:
    """Return the attributes that are tied; a live one whose source left the model is an ordinary tensor."""
    return [name for name, link in links(module).items() if not link.is_live or link.identity_owner() is not None]


def _children(module: nn.Module) -> Iterator[tuple[str, str]]:
    if isinstance(module, torch.jit.ScriptModule):
        return  # its attributes are fixed: nothing in it can be a target or a source
    tied = _in_force(module)
    yield from ((name, "tied") for name in tied)
    yield from ((n, "parameter") for n, tensor in module._parameters.items() if tensor is not None and n not in tied)
    yield from ((n, "buffer") for n, tensor in module._buffers.items() if tensor is not None and n not in tied)
    parametrized = module._modules.get("parametrizations")
    if isinstance(parametrized, nn.ModuleDict):
        yield from ((name, "computed") for name in parametrized)
    yield from ((name, "computed") for name, value in module.__dict__.items() if isinstance(value, Tensor))
    yield from ((name, "computed") for name in _properties(type(module)) if not _holds(module, name))
    yield from ((name, "module") for name, child in module._modules.items() if child is not None)
