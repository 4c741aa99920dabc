"""Computed sources: reading an attribute that its module computes, as it would compute it now.

Owns: pruning, weight norm, spectral norm and parametrizations, as sources. Must not change their state: a
tie that reads is no forward of the source. Read next: `link.py`.

Torch's older pruning and norms refresh `module.weight` in the module's own forward only, so that whoever reads
it without that forward gets the value of the last one. Spectral norm improves its estimate at every read in
training, so that two reads in one forward would differ. Here the value is computed afresh from the present
parameters and the present estimate: after the source's own forward it is bit for bit what that forward used.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from torch import nn
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm


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
    parametrized = module._modules.get("parametrizations")
    if isinstance(parametrized, nn.ModuleDict) and name in parametrized:
        with _still(parametrized[name]):
            return getattr(module, name)
    return getattr(module, name)


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
