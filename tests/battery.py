"""The battery: what people's tools do to a model, as functions of a model, and the two models that they are tried on.

Each `Tool` is tried on a tied model and on its oracle: for an identity the plain twin (`b.weight = a.weight`), for
every other tie a module of plain torch that computes the target by hand in its forward. Both go through the same tool;
what it returns has to be the same, or the tied model raises an error of ours.
"""

import contextlib
import copy
import io
import pickle
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, stack_module_state, vmap
from torch.nn import Parameter
from torch.nn.utils import parametrizations, prune
from torch.optim.swa_utils import AveragedModel

import tied

Formula = Callable[[dict[str, Tensor]], Tensor]
TURNED = torch.arange(15, -1, -1).reshape(4, 4)
TIES: dict[str, tuple[str, Formula]] = {
    "identity": ("a.weight", lambda t: t["a.weight"]),
    "transposed": ("a.weight.T", lambda t: t["a.weight"].t()),
    "scaled": ("2 * a.weight", lambda t: 2 * t["a.weight"]),
    "gathered": ("a.weight.flatten()[turned]", lambda t: t["a.weight"].flatten()[TURNED]),
    "two sources": ("a.weight + spare", lambda t: t["a.weight"] + t["spare"]),
}


class Pair(nn.Module):
    """Two layers, of which the second shares with the first; float64, so that a difference is a difference."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.spare = Parameter(torch.rand(4, 4))
        self.register_buffer("turned", TURNED.clone())
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x))) + 0 * self.spare.sum()


class Bias(nn.Module):
    """What is left of a layer whose matrix is computed elsewhere."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.bias = Parameter(layer.bias.detach().clone())


class ByHand(Pair):
    """The oracle of a transform: the matrix of the second layer is computed in the forward."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.b, self.kind = Bias(self.b), kind

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.a(x))  # first: torch's pruning computes the weight in there
        weight = TIES[self.kind][1]({"a.weight": self.a.weight, "spare": self.spare})
        return nn.functional.linear(hidden, weight, self.b.bias) + 0 * self.spare.sum()


def tied_pair(kind: str) -> nn.Module:
    model = Pair()
    tied.tie(model, "b.weight", TIES[kind][0])
    return model


def oracle(kind: str) -> nn.Module:
    if kind != "identity":
        return ByHand(kind)
    model = Pair()
    model.b.weight = model.a.weight
    return model


def is_plain(model: nn.Module) -> bool:
    """Tell whether a model is the plain twin."""
    return not isinstance(model, ByHand) and not tied.ties(model)


def inputs(seed: int = 1) -> Tensor:
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@dataclass(frozen=True)
class Tool:
    """Something that people do to a model.

    Attributes:
        group: Of the table in the docs.
        name: In the words of its users.
        act: Does it, and returns tensors that show whether it was right.
        needs: The package that it comes from, if that is not torch.
        blind: What it cannot see of a transform, and nobody can tell it; an identity has to be right all the same.
    """

    group: str
    name: str
    act: Callable[[nn.Module], Any]
    needs: str = ""
    blind: str = ""

    def __str__(self) -> str:
        return f"{self.group}: {self.name}"


def trained(model: nn.Module, optimizer: torch.optim.Optimizer | None = None, steps: int = 3) -> Tensor:
    """Train, and return what the model computes then."""
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=0.05)
    for step in range(steps):
        optimizer.zero_grad()
        model(inputs(step)).square().mean().backward()
        optimizer.step()
    return model(inputs(9)).detach()


def both(model: nn.Module) -> list[Tensor]:
    """Return what a model computes, and computes after training."""
    return [model(inputs()).detach(), trained(model)]


# -- copies and clones --------------------------------------------------------------------------------


def through_a_file(model: nn.Module) -> nn.Module:
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


def cloned(module: nn.Module, known: dict[Parameter, Parameter] | None = None) -> nn.Module:
    """As libraries of fast weights do: new modules over copied dicts, with other values of the same Parameters."""
    known = {} if known is None else known
    twin = object.__new__(type(module))
    twin.__dict__ = module.__dict__.copy()
    twin._parameters = {n: known.setdefault(p, Parameter(p.detach() + 0.5)) for n, p in module._parameters.items()}
    twin._modules = {name: cloned(child, known) for name, child in module._modules.items()}
    return twin


def replicated(model: nn.Module) -> nn.Module:
    """As `torch.nn.parallel.replicate`, on one device: what it broadcasts is copied here."""
    parameters = list(model.parameters())
    copies = [Parameter(p.detach() + 0.5) for p in parameters]
    index = {p: place for place, p in enumerate(parameters)}
    modules = list(model.modules())
    replicas = [module._replicate_for_data_parallel() for module in modules]
    for replica, module in zip(replicas, modules, strict=True):
        for name, child in module._modules.items():
            setattr(replica, name, replicas[modules.index(child)])
        for name, parameter in module._parameters.items():
            setattr(replica, name, copies[index[parameter]])
    return replicas[0]


# -- averages -----------------------------------------------------------------------------------------


def averaged(model: nn.Module) -> Tensor:
    average = AveragedModel(model)
    for _ in range(3):
        trained(model, steps=1)
        average.update_parameters(model)
    return average(inputs()).detach()


def moved_towards(model: nn.Module, part: Callable[[nn.Module], nn.Module]) -> list[Tensor]:
    """The target network of reinforcement learning: a copy that follows, parameter by parameter."""
    slow = copy.deepcopy(part(model))
    trained(model)
    with torch.no_grad():
        for mine, other in zip(slow.parameters(), part(model).parameters(), strict=True):
            mine.mul_(0.9).add_(other, alpha=0.1)
    return [slow(inputs()).detach(), model(inputs()).detach()]


# -- functions ----------------------------------------------------------------------------------------


def called_with(model: nn.Module) -> Tensor:
    moved = {name: p.detach() + 1 for name, p in model.named_parameters()}
    return functional_call(model, moved, (inputs(),))


def ensemble(model: nn.Module) -> Tensor:
    if is_plain(model):  # its base on meta is cut, and torch then computes with memory that nobody wrote
        model = ByHand("identity")
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


# -- training -----------------------------------------------------------------------------------------


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


# -- conversions and changes of the weight ------------------------------------------------------------


def with_memory_anew(model: nn.Module) -> list[Tensor]:
    if is_plain(model):  # which this cuts
        model = ByHand("identity")
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.to("meta").to_empty(device="cpu").load_state_dict(state)
    return both(model)


def assigned(model: nn.Module) -> list[Tensor]:
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    if is_plain(model):
        model.b.weight = model.a.weight  # what plain sharing has to do again by hand
    return both(model)


def with_source_replaced(model: nn.Module) -> list[Tensor]:
    again = is_plain(model)
    model.a.weight = Parameter(model.a.weight.detach() * 0.5)
    if again:
        model.b.weight = model.a.weight
    return both(model)


def changed_source(change: Callable[[nn.Module], object]) -> Callable[[nn.Module], Any]:
    """Change the weight of the source, which an oracle of plain sharing cannot follow: it computes by hand."""

    def act(model: nn.Module) -> list[Tensor]:
        if is_plain(model):
            model = ByHand("identity")
        change(model.a)
        return [model(inputs()).detach(), trained(model, torch.optim.SGD(model.parameters(), lr=0.05))]

    return act


def spectral(module: nn.Module) -> None:
    parametrizations.spectral_norm(module.eval())  # training would move its estimate at each read


# -- graphs -------------------------------------------------------------------------------------------


def quietly(act: Callable[[nn.Module], Any]) -> Callable[[nn.Module], Any]:
    def quiet(model: nn.Module) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return act(model)

    return quiet


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


# -- accelerate ---------------------------------------------------------------------------------------


def elsewhere(act: Callable[[nn.Module], Tensor]) -> Callable[[nn.Module], Any]:
    """Keep values elsewhere; what computes a matrix by hand would read it from there, so that it is left in memory."""
    return quietly(lambda model: model(inputs()).detach() if isinstance(model, ByHand) else act(model))


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def offloaded(model: nn.Module) -> Tensor:
    import accelerate

    accelerate.cpu_offload(model, execution_device="cpu")
    model(inputs())
    return model(inputs()).detach()


def on_disk(model: nn.Module) -> Tensor:
    import accelerate

    with folder() as place:
        accelerate.disk_offload(model, place, execution_device="cpu")
        model(inputs())
        return model(inputs()).detach()


def dispatched(model: nn.Module) -> Tensor:
    import accelerate

    with folder() as place:
        devices = {"a": "disk", "b": "cpu", "spare": "cpu", "turned": "cpu"}
        made = accelerate.dispatch_model(model, devices, main_device="cpu", offload_dir=place, force_hooks=True)
        return made(inputs()).detach()


def loaded_and_dispatched(model: nn.Module) -> Tensor:
    import accelerate

    with folder() as place:
        torch.save(model.state_dict(), place / "model.bin")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        made = accelerate.load_checkpoint_and_dispatch(model, str(place / "model.bin"), device_map={"": "cpu"})
        return made(inputs()).detach()


def prepared(model: nn.Module) -> Tensor:
    import accelerate

    accelerator = accelerate.Accelerator(cpu=True)
    made, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.05))
    return trained(made, optimizer)


# -- peft ---------------------------------------------------------------------------------------------


def adapted(*names: str, **options: Any) -> Callable[[nn.Module], Any]:
    """Train an adapter on some of the layers; the oracle of a transform has an adapter by hand on its second layer."""

    def act(model: nn.Module) -> list[Tensor]:
        import peft

        if isinstance(model, ByHand) and "b" in names:
            raise NotImplementedError("the oracle has no second layer to adapt")
        torch.manual_seed(0)
        made = peft.get_peft_model(model, peft.LoraConfig(target_modules=[*names], r=2, lora_dropout=0.0, **options))
        made.double()
        return [made(inputs()).detach(), trained(made)]

    return act


# -- counting -----------------------------------------------------------------------------------------


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
    Tool("copies", "`copy.deepcopy`", lambda m: both(copy.deepcopy(m))),
    Tool("copies", "`pickle`", lambda m: both(pickle.loads(pickle.dumps(m)))),
    Tool("copies", "`torch.save` of the module", lambda m: both(through_a_file(m))),
    Tool("copies", "`copy.copy`", lambda m: both(copy.copy(m))),
    Tool("clones", "new modules over a copied `__dict__` (meta-learning)", lambda m: cloned(m)(inputs()).detach()),
    Tool("clones", "`torch.nn.parallel.replicate` (DataParallel)", lambda m: replicated(m)(inputs()).detach()),
    Tool("averages", "`AveragedModel`", averaged),
    Tool("averages", "a copy that follows (polyak)", lambda m: moved_towards(m, lambda each: each)),
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
    Tool("changes", "`.to(meta)`, `to_empty`, `load_state_dict`", with_memory_anew),
    Tool("changes", "`load_state_dict(assign=True)`", assigned),
    Tool("changes", "the source's Parameter replaced", with_source_replaced),
    Tool("changes", "`weight_norm` on the source", changed_source(parametrizations.weight_norm)),
    Tool("changes", "`spectral_norm` on the source", changed_source(spectral)),
    Tool("changes", "`prune` on the source", changed_source(lambda m: prune.l1_unstructured(m, "weight", 0.5))),
    Tool("graphs", "`torch.compile(fullgraph=True)`", quietly(compiled)),
    Tool("graphs", "`torch.export`", quietly(exported)),
    Tool("graphs", "`torch.jit.trace`", quietly(lambda m: torch.jit.trace(m, (inputs(),))(inputs()).detach())),
    Tool("graphs", "`torch.fx.symbolic_trace`", quietly(symbolic)),
    Tool("graphs", "`make_fx` of a functional call", quietly(made_fx)),
    Tool("accelerate", "`cpu_offload`", elsewhere(offloaded), "accelerate"),
    Tool("accelerate", "`disk_offload`", elsewhere(on_disk), "accelerate"),
    Tool("accelerate", "`dispatch_model`, the source on disk", elsewhere(dispatched), "accelerate"),
    Tool("accelerate", "`load_checkpoint_and_dispatch`", quietly(loaded_and_dispatched), "accelerate"),
    Tool("accelerate", "`Accelerator.prepare`", quietly(prepared), "accelerate"),
    Tool("peft", "LoRA on the source", quietly(adapted("a")), "peft"),
    Tool("peft", "LoRA on the target", quietly(adapted("b")), "peft"),
    Tool("peft", "LoRA on both", quietly(adapted("a", "b")), "peft"),
    Tool("counting", "parameters", counted),
    Tool("counting", "FLOPs", flops),
    Tool(
        "counting",
        "per-sample gradients by hooks on layers (DP-SGD)",
        by_hooks,
        blind="misses the target's use; by `vmap` and `grad` it is right",
    ),
]
