"""Tools that call a model as a function, and those that train it."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, stack_module_state, vmap

from battery.subjects import (
    ByHand,
    by_hand,
    inputs,
)
from battery.tool import Act, Tool, quietly, trained


def called_with(model: nn.Module) -> Tensor:
    moved = {name: p.detach() + 1 for name, p in model.named_parameters()}
    return functional_call(model, moved, (inputs(),))


def ensemble(model: nn.Module) -> Tensor:
    model = by_hand(model)  # plain sharing's base on meta is cut, and torch then computes with memory nobody wrote
    models = [model, copy.deepcopy(model)]
    trained(models[1])
    parameters, buffers = stack_module_state(models)
    base, x = copy.deepcopy(model).to("meta"), inputs()
    return vmap(lambda p, b: functional_call(base, (p, b), (x,)))(parameters, buffers).detach()


def per_sample(model: nn.Module) -> Tensor:
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    one = lambda p, x: functional_call(model, p, (x.unsqueeze(0),)).square().sum()  # noqa: E731
    return vmap(grad(one), in_dims=(None, 0))(parameters, inputs())["a.weight"]


def pushed_forward(model: nn.Module) -> Tensor:
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    ones = {name: torch.ones_like(p) for name, p in parameters.items()}
    return jvp(lambda p: functional_call(model, p, (inputs(),)), (parameters,), (ones,))[1]


def clipped(model: nn.Module) -> list[Tensor]:
    model(inputs()).square().sum().backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 0.01)
    return [norm, model.a.weight.grad.clone()]


def line_searched(model: nn.Module) -> Tensor:
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(inputs()).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    return model(inputs()).detach()


def resumed(model: nn.Module) -> Tensor:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    trained(model, optimizer)
    again = torch.optim.Adam(model.parameters(), lr=0.05)
    again.load_state_dict(optimizer.state_dict())
    return trained(model, again)


def as_one_vector(model: nn.Module) -> Tensor:
    vector = nn.utils.parameters_to_vector(model.parameters())
    nn.utils.vector_to_parameters(vector * 1.5, model.parameters())
    return model(inputs()).detach()


def at_the_target(act: Callable[[Tensor], object]) -> Act:
    """Do something to what the target's slot holds, as tools do that were given a layer; then train."""

    def done(model: nn.Module) -> list[Tensor]:
        if isinstance(model, ByHand):  # its layer has no weight
            raise NotImplementedError
        model(inputs()).square().sum().backward()
        act(model.b.weight)
        gradient = model.a.weight.grad.clone()
        model(inputs()).square().sum().backward()
        return [gradient, model.a.weight.grad.clone(), trained(model)]

    return done


def clipped_at_the_target(model: nn.Module) -> list[Tensor]:
    """Clip the gradient of the target alone: its source's, where it is a view; a computed one has none of its own."""
    model(inputs()).square().sum().backward()
    if not isinstance(model, ByHand):
        norm = nn.utils.clip_grad_norm_([model.b.weight], 0.01)
    elif model.kind == "transposed":
        norm = nn.utils.clip_grad_norm_([model.a.weight], 0.01)
    else:
        norm = torch.tensor(0.0)
    return [norm, model.a.weight.grad.clone()]


def assigned(weight: Tensor) -> None:
    weight.grad = torch.ones_like(weight)


def doubled(parameter: Tensor) -> None:
    parameter.grad.mul_(2)


def stepped(weight: Tensor) -> None:
    torch.optim.SGD([weight], lr=0.1).step()


def differentiated(model: nn.Module) -> Tensor:
    if isinstance(model, ByHand):
        raise NotImplementedError
    return torch.autograd.grad(model(inputs()).square().sum(), model.b.weight)[0]


def with_norms(model: nn.Module) -> list[Tensor]:
    """Clip by value, and tell the norm of each layer's gradient, as loggers do."""
    model(inputs()).square().sum().backward()
    nn.utils.clip_grad_value_(model.parameters(), 0.1)
    return [p.grad.norm() for p in model.parameters() if p.grad is not None]


TOOLS = [
    Tool("functions", "`functional_call`", called_with),
    Tool("functions", "`vmap` over an ensemble", ensemble),
    Tool("functions", "per-sample gradients by `vmap` and `grad`", per_sample),
    Tool("functions", "`jvp`", pushed_forward),
    Tool("training", "AdamW", trained),
    Tool("training", "SGD with momentum", lambda m: trained(m, torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9))),
    Tool("training", "LBFGS", line_searched),
    Tool("training", "`clip_grad_norm_`", clipped),
    Tool("training", "an optimizer's state dict", resumed),
    Tool("training", "`parameters_to_vector` and back", as_one_vector),
    Tool("training", "clipping by value, norms of gradients", with_norms),
    Tool("training", "`.grad = ...` of the target", at_the_target(assigned)),
    Tool("training", "`register_hook` on the target", at_the_target(lambda w: w.register_hook(lambda g: 2 * g))),
    Tool(
        "training",
        "`register_post_accumulate_grad_hook` on it",
        at_the_target(lambda w: w.register_post_accumulate_grad_hook(doubled)),
        foreign="torch's `RuntimeError`",
    ),
    Tool("training", "an optimizer of the target alone", at_the_target(stepped), foreign="torch's `ValueError`"),
    Tool("training", "`torch.autograd.grad` for the target", differentiated, foreign="torch's `RuntimeError`"),
    Tool("training", "`clip_grad_norm_` of the target alone", quietly(clipped_at_the_target)),
]
