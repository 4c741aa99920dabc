"""Tools that call a model as a function, and those that train it."""

import copy

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, stack_module_state, vmap

from battery.subjects import by_hand, inputs
from battery.tool import Tool, trained


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
]
