"""Tools that make a graph of a model."""

import torch
from torch import Tensor, nn
from torch.func import functional_call

from battery.subjects import inputs
from battery.tool import Tool, both, quietly


def compiled(model: nn.Module) -> list[Tensor]:
    torch._dynamo.reset()
    return both(torch.compile(model, backend="eager", fullgraph=True))


def exported(model: nn.Module) -> Tensor:
    return torch.export.export(model, (inputs(),)).module()(inputs()).detach()


def made_fx(model: nn.Module) -> Tensor:
    from torch.fx.experimental.proxy_tensor import make_fx

    parameters = {name: p.detach() for name, p in model.named_parameters()}
    traced = make_fx(lambda p, x: functional_call(model, p, (x,)))(parameters, inputs())
    return traced({name: p + 1 for name, p in parameters.items()}, inputs())


def symbolic(model: nn.Module) -> Tensor:
    graph = torch.fx.symbolic_trace(model)
    with torch.no_grad():
        graph.get_parameter("a.weight").mul_(0.5)
    return graph(inputs()).detach()


TOOLS = [
    Tool("graphs", "`torch.compile(fullgraph=True)`", quietly(compiled)),
    Tool("graphs", "`torch.export`", quietly(exported)),
    Tool("graphs", "`torch.jit.trace`", quietly(lambda m: torch.jit.trace(m, (inputs(),))(inputs()).detach())),
    Tool("graphs", "`torch.fx.symbolic_trace`", quietly(symbolic)),
    Tool("graphs", "`make_fx` of a functional call", quietly(made_fx)),
]
