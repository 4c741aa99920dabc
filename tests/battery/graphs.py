"""Tools that make a graph of a model."""

import copy
import pickle

import torch
from torch import Tensor, nn
from torch.func import functional_call

import tied
from battery.subjects import (
    TIES,
    ByHand,
    Pair,
    Subject,
    inputs,
)
from battery.tool import Tool, both, quietly, trained


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


def made_fx_as_it_is(model: nn.Module) -> list[Tensor]:
    """Trace by dispatch, in each of its modes, with the weights as constants."""
    from torch.fx.experimental.proxy_tensor import make_fx

    found = []
    for mode in ("real", "fake", "symbolic"):
        with torch.no_grad():
            found.append(make_fx(model, tracing_mode=mode, _allow_non_fake_inputs=True)(inputs())(inputs()))
    return found


def linearized(model: nn.Module) -> list[Tensor]:
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    ones = {name: torch.ones_like(p) for name, p in parameters.items()}
    output, pushed = torch.func.linearize(lambda p: functional_call(model, p, (inputs(),)), parameters)
    by_input = torch.func.linearize(lambda x: model(x), inputs())[1](torch.ones_like(inputs()))
    return [output, pushed(ones), by_input.detach()]


def jacobian(model: nn.Module) -> list[Tensor]:
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    x = inputs()[:2]
    function = lambda p: functional_call(model, p, (x,)).sum(0)  # noqa: E731
    forward, backward = (j(function)(parameters)["a.weight"] for j in (torch.func.jacfwd, torch.func.jacrev))
    return [forward, backward, torch.func.hessian(lambda x: model(x).square().sum())(x[0]).detach()]


class Reading(Pair):
    """Reads the target itself, without calling its layer."""

    def forward(self, x: Tensor) -> Tensor:
        return self.c(nn.functional.linear(self.hidden(x), self.b.weight, self.b.bias)) + 0 * self.spare.sum()


def reading(kind: str) -> nn.Module:
    model = Reading(kind)
    tied.tie(model, "b.weight", TIES[kind][0])
    return model


def plain_reading(kind: str) -> nn.Module:
    if kind != "identity":
        return ByHand(kind)
    model = Reading(kind)
    model.b.weight = model.a.weight
    return model


READING = Subject(reading, plain_reading)


def rewritten(model: nn.Module) -> list[Tensor]:
    """Trace, and train the graph."""
    graph = torch.fx.symbolic_trace(model)
    return both(graph)


def copied_graph(model: nn.Module) -> list[Tensor]:
    graph = torch.fx.symbolic_trace(model)
    copies = [copy.deepcopy(graph), pickle.loads(pickle.dumps(graph))]
    return [tensor for each in copies for tensor in both(each)]


def features(model: nn.Module) -> list[Tensor]:
    """Cut a traced graph in front of the last layer, as feature extractors do, and let go of the model."""
    graph = torch.fx.Tracer().trace(model)
    (last,) = (node for node in graph.nodes if node.target == "c")
    (output,) = (node for node in graph.nodes if node.op == "output")
    output.args = (last.args[0],)
    cut = torch.fx.GraphModule(model, graph)
    cut.graph.eliminate_dead_code()
    cut.delete_all_unused_submodules()
    cut.recompile()
    del model
    found = [cut(inputs()).detach()]
    with torch.no_grad():
        cut.get_parameter("a.weight").mul_(0.5)
    return [*found, cut(inputs()).detach(), trained(cut)]


def prepared_for_quantization(model: nn.Module) -> Tensor:
    """Observers are put in, which leaves the numbers as they are."""
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import prepare_fx

    prepared = prepare_fx(model.eval(), get_default_qconfig_mapping("qnnpack"), (inputs(),))
    prepared(inputs())
    return prepared(inputs()).detach()


TOOLS = [
    Tool("graphs", "`torch.compile(fullgraph=True)`", quietly(compiled)),
    Tool("graphs", "`torch.export`", quietly(exported)),
    Tool("graphs", "`torch.jit.trace`", quietly(lambda m: torch.jit.trace(m, (inputs(),))(inputs()).detach())),
    Tool("graphs", "`torch.fx.symbolic_trace`", quietly(symbolic)),
    Tool("graphs", "`make_fx` of a functional call", quietly(made_fx)),
    Tool("graphs", "`make_fx` of the model, in three modes", quietly(made_fx_as_it_is)),
    Tool("graphs", "`torch.func.linearize`", quietly(linearized)),
    Tool("graphs", "`jacfwd`, `jacrev`, `hessian`", quietly(jacobian)),
    Tool("graphs", "`symbolic_trace`, and training", quietly(rewritten)),
    Tool("graphs", "a copy of the graph", quietly(copied_graph)),
    Tool("graphs", "the same of a forward that reads the target", quietly(rewritten), subject=READING),
    Tool("graphs", "a copy of that graph", quietly(copied_graph), subject=READING),
    Tool("graphs", "`torch.export` of it", quietly(exported), subject=READING),
    Tool("graphs", "`torch.compile` of it", quietly(compiled), subject=READING),
    Tool("graphs", "features of a traced graph", quietly(features)),
    Tool("graphs", "features of one that reads the target", quietly(features), subject=READING),
    Tool("graphs", "`prepare_fx` (quantization)", quietly(prepared_for_quantization)),
]
