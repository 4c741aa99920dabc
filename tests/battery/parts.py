"""What is done with a part of a model, whose source lies outside of it."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from battery.subjects import (
    ByHand,
    Pair,
    inputs,
)
from battery.tool import Tool, both, trained


def part(model: nn.Module) -> nn.Module:
    """Return the last two layers; those of an oracle of a transform compute with what is not theirs."""
    if isinstance(model, ByHand):
        raise NotImplementedError
    return nn.Sequential(model.b, model.c)


def averaged(model: nn.Module) -> list[Tensor]:
    average = AveragedModel(part(model))
    for _ in range(3):
        trained(model, steps=1)
        average.update_parameters(part(model))
    return [average(inputs()).detach(), model(inputs()).detach()]


def followed(model: nn.Module) -> list[Tensor]:
    """A target network of a part, in steps."""
    slow = copy.deepcopy(part(model))
    trained(model)
    with torch.no_grad():
        for mine, other in zip(slow.parameters(), part(model).parameters(), strict=True):
            mine.mul_(0.9).add_(other, alpha=0.1)
    return [slow(inputs()).detach(), model(inputs()).detach()]


def replaced(model: nn.Module) -> list[Tensor]:
    """A target network of a part, all at once."""
    slow = copy.deepcopy(part(model))
    trained(model)
    slow.load_state_dict(part(model).state_dict())
    return [slow(inputs()).detach(), model(inputs()).detach()]


def put_back(model: nn.Module) -> list[Tensor]:
    """Values of a copy, loaded into the part that was copied."""
    slow = copy.deepcopy(part(model))
    with torch.no_grad():
        for parameter in slow.parameters():
            parameter.mul_(0.5)
    part(model).load_state_dict(slow.state_dict())
    return both(model)


def saved_apart(model: nn.Module) -> dict[str, Any]:
    """Save part by part, as sentence-transformers does."""
    return {name: copy.deepcopy(child.state_dict()) for name, child in model.named_children()}


def loaded_apart(model: nn.Module) -> list[Tensor]:
    states = saved_apart(model)
    with torch.no_grad():
        for child in model.children():
            for parameter in child.parameters():
                parameter.fill_(0.1)
    for name, state in states.items():
        getattr(model, name).load_state_dict(state)
    return both(model)


def loaded_untied(model: nn.Module) -> Tensor:
    """Save part by part, and load where nothing is shared."""
    untied = Pair(model.kind) if not isinstance(model, ByHand) else ByHand(model.kind)
    for name, state in saved_apart(model).items():
        getattr(untied, name).load_state_dict(state)
    return untied(inputs()).detach()


def stepped(model: nn.Module) -> Tensor:
    """Give an optimizer the parameters of a part alone: a weight that is elsewhere is not one of them."""
    optimizer = torch.optim.SGD([*model.b.parameters(), *model.c.parameters()], lr=0.05)
    return trained(model, optimizer)


def frozen(model: nn.Module) -> list[Tensor]:
    """Freeze the layer in front; what it shares is frozen for both."""
    model.a.requires_grad_(False)
    return both(model)


def zeroed(model: nn.Module) -> Tensor:
    """Take the gradients of a part away: a weight that is elsewhere keeps its own."""
    model(inputs()).square().sum().backward()
    model.b.zero_grad()
    gradient = model.a.weight.grad
    return torch.zeros(4, 4, dtype=torch.float64) if gradient is None else gradient.clone()


MISSING = "torch's `RuntimeError`"
TOOLS = [
    Tool("parts", "`AveragedModel` of a part", averaged),
    Tool(
        "parts",
        "a copy of a part that follows (polyak)",
        followed,
    ),
    Tool("parts", "`load_state_dict` of a part into its copy", replaced),
    Tool("parts", "`load_state_dict` of a copy into its part", put_back),
    Tool("parts", "saved and loaded part by part", loaded_apart),
    Tool("parts", "saved part by part, loaded where nothing is shared", loaded_untied, foreign=MISSING),
    Tool("parts", "an optimizer of a part's parameters", stepped),
    Tool("parts", "`requires_grad_(False)` of the source's layer", frozen),
    Tool("parts", "`zero_grad` of the target's layer", zeroed),
]
