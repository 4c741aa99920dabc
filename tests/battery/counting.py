"""Tools that count, and those that look at each layer."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from battery.subjects import ByHand, inputs
from battery.tool import Tool, trained


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


def kept_on_parameters(model: nn.Module) -> Tensor:
    """Per-sample gradients as Opacus and BackPACK keep them: attributes of the layers' Parameters."""

    def forward(layer: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        output.register_hook(lambda gradient: enter(layer.weight, torch.einsum("ni,nj->nij", gradient, given[0])))

    def enter(weight: Any, gradient: Tensor) -> None:
        if hasattr(weight, "grad_sample"):
            weight.grad_sample += gradient.detach()
        else:
            weight.grad_sample = gradient.detach()

    hooks = [m.register_forward_hook(forward) for m in model.modules() if isinstance(m, nn.Linear)]
    model(inputs()).square().sum().backward()
    for hook in hooks:
        hook.remove()
    return model.a.weight.grad_sample.sum(0)


def marked(model: nn.Module) -> list[Tensor]:
    """Have groups of an optimizer by a mark that a constructor set on the weights of layers."""
    if isinstance(model, ByHand):  # the layer whose matrix is computed has none to mark
        raise NotImplementedError
    for layer in (model.a, model.b):
        layer.weight.no_decay = True
    plain = [p for p in model.parameters() if getattr(p, "no_decay", False)]
    others = [p for p in model.parameters() if not getattr(p, "no_decay", False)]
    groups = [{"params": plain, "weight_decay": 0.0}, {"params": others, "weight_decay": 0.5}]
    return [trained(model, torch.optim.AdamW(groups, lr=0.05))]


def by_exact_class(model: nn.Module) -> Tensor:
    """Multiplications as counters find them that know layers by `type(module)`: ptflops, thop, calflops."""
    found: list[int] = []
    known = {nn.Linear: lambda m, given: found.append(given[0].shape[0] * m.in_features * m.out_features)}
    hooks = [m.register_forward_pre_hook(known[type(m)]) for m in model.modules() if type(m) in known]
    model(inputs())
    for hook in hooks:
        hook.remove()
    return torch.tensor(sum(found))


def by_layer(model: nn.Module) -> Tensor:
    """Parameters as summaries count them, layer by layer, each once."""
    seen: set[int] = set()
    counts = list[int]()
    for module in model.modules():
        own = [p for p in module.parameters(recurse=False) if id(p) not in seen]
        seen.update(map(id, own))
        counts.append(sum(p.numel() for p in own))
    return torch.tensor(counts)


TOOLS = [
    Tool("counting", "parameters", counted),
    Tool("counting", "FLOPs", flops),
    Tool(
        "counting",
        "per-sample gradients by hooks on layers (DP-SGD)",
        by_hooks,
        blind="misses the target's use; by `vmap` and `grad` it is right",
    ),
    Tool("counting", "per-sample gradients kept on Parameters (Opacus, BackPACK)", kept_on_parameters),
    Tool("counting", "parameters of each layer", by_layer),
    Tool(
        "counting",
        "FLOPs by the exact class of layers",
        by_exact_class,
        blind="does not know the class of the target's layer, and counts 0 for it",
    ),
    Tool("counting", "marks on Parameters (`no_decay`)", marked),
]
