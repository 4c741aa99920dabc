"""Tools that count, and those that look at each layer."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from battery.subjects import inputs
from battery.tool import Tool


def counted(model: nn.Module) -> Tensor:
    return torch.tensor(sum(p.numel() for p in model.parameters()))


def flops(model: nn.Module) -> Tensor:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        model(inputs())
    return torch.tensor(counter.get_total_flops())


def by_hooks(model: nn.Module) -> Tensor:
    """Per-sample gradients as DP-SGD libraries make them: by hooks on layers, entered on the layers' Parameters."""
    found: dict[Parameter, Tensor] = {}

    def forward(layer: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        output.register_hook(lambda gradient: enter(layer.weight, torch.einsum("ni,nj->nij", gradient, given[0])))

    def enter(weight: Any, gradient: Tensor) -> None:
        found[weight] = found.get(weight, 0) + gradient.detach()

    hooks = [m.register_forward_hook(forward) for m in model.modules() if isinstance(m, nn.Linear)]
    model(inputs()).square().sum().backward()
    for hook in hooks:
        hook.remove()
    return found[model.a.weight].sum(0)


TOOLS = [
    Tool("counting", "parameters", counted),
    Tool("counting", "FLOPs", flops),
    Tool(
        "counting",
        "per-sample gradients by hooks on layers (DP-SGD)",
        by_hooks,
        blind="misses the target's use; by `vmap` and `grad` it is right",
    ),
]
