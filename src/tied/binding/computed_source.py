"""Computed sources: reading and writing an attribute that its module computes, as it would compute it now.

Owns: pruning, weight norm, spectral norm, parametrizations and adapters, as sources. Reading must not change their
state: a tie that reads is no forward of the source. Read next: `link.py`.

Torch's older pruning and norms refresh `module.weight` in the module's own forward only, so that whoever reads
it without that forward gets the value of the last one. Spectral norm improves its estimate at every read in
training, so that two reads in one forward would differ. Here the value is computed afresh from the present
parameters and the present estimate: after the source's own forward it is bit for bit what that forward used.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from tied.binding.followers.adapters import is_adapter
from tied.errors import InverseError


def read_attribute(module: nn.Module, name: str) -> object:
    """Return the attribute `name` of `module` as a forward of `module` would see it now.

    Raises:
        AttributeError: there is none.
    """
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, BasePruningMethod) and hook._tensor_name == name:
            return hook.apply_mask(module)
        if isinstance(hook, WeightNorm) and hook.name == name:
            return hook.compute_weight(module)
        if isinstance(hook, SpectralNorm) and hook.name == name:
            return hook.compute_weight(module, do_power_iteration=False)
    parametrization = _parametrization(module, name)
    if parametrization is not None:
        with _still(parametrization):
            return getattr(module, name)
    if is_adapter(module):
        base = module._modules["base_layer"]
        return read_attribute(base, name) if base is not None else None  # an adapter belongs to the use it was put on
    return getattr(module, name)


def write_attribute(module: nn.Module, name: str, value: Tensor) -> None:
    """Give the attribute `name` of `module` a value: a tensor it holds, or what its parametrization is made of.

    Raises:
        InverseError: it is computed, and nothing gives `value`; nothing was written.
    """
    for place in (module._parameters, module._buffers):
        held = place.get(name)
        if held is not None:
            held.copy_(value)
            return
    parametrization = _parametrization(module, name)
    if parametrization is None:
        raise _not_writable(module, name, "a value that its module computes (pruning, a norm, an adapter)")
    undo = remember_attribute(module, name)
    try:
        setattr(module, name, value)
        if not torch.allclose(cast(Tensor, read_attribute(module, name)), value, equal_nan=True):
            raise ValueError("the parametrization makes another value of it")
    except BaseException as error:  # whatever somebody's right inverse raises, and Ctrl-C
        undo()
        if not isinstance(error, Exception):
            raise
        words = str(error).splitlines() or [type(error).__name__]
        raise _not_writable(module, name, f"a parametrization: {words[0]}") from error


def remember_attribute(module: nn.Module, name: str) -> Callable[[], None]:
    """Return a function that puts back what `write_attribute` changes: tensors, and their values."""
    parametrization = _parametrization(module, name)
    modules = [module] if parametrization is None else list(parametrization.modules())
    places = [place for each in modules for place in (each._parameters, each._buffers)]
    held = [
        (place, key, tensor, tensor.detach().clone())
        for place in places
        for key, tensor in place.items()
        if tensor is not None and (parametrization is not None or key == name)
    ]

    def undo() -> None:
        for place, key, tensor, value in held:
            tensor.detach().copy_(value)
            place[key] = tensor  # type: ignore[assignment]

    return undo


def _not_writable(module: nn.Module, name: str, found: str) -> InverseError:
    return InverseError(
        f"'{name}' of {type(module).__name__}, which a tied weight reads, is computed and cannot be given this value.",
        found=found,
        expected="a Parameter, or a parametrization with a right inverse",
        fix="write to what it is computed from, or call tied.untie(model, target) first",
    )


def _parametrization(module: nn.Module, name: str) -> nn.Module | None:
    parametrized = module._modules.get("parametrizations")
    return parametrized[name] if isinstance(parametrized, nn.ModuleDict) and name in parametrized else None


@contextmanager
def _still(parametrization: nn.Module) -> Generator[None]:
    """Keep spectral norms from updating their estimates."""
    moving = [m for m in parametrization.modules() if isinstance(m, _SpectralNorm) and m.training]
    try:
        for norm in moving:
            norm.training = False
        yield
    finally:
        for norm in moving:
            norm.training = True
