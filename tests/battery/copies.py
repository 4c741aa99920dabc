"""Tools that copy a model, clone it, or follow it with an average."""

import copy
import io
import pickle
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim.swa_utils import AveragedModel

from battery.subjects import inputs
from battery.tool import Tool, both, trained


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


TOOLS = [
    Tool("copies", "`copy.deepcopy`", lambda m: both(copy.deepcopy(m))),
    Tool("copies", "`pickle`", lambda m: both(pickle.loads(pickle.dumps(m)))),
    Tool("copies", "`torch.save` of the module", lambda m: both(through_a_file(m))),
    Tool("copies", "`copy.copy`", lambda m: both(copy.copy(m))),
    Tool("clones", "new modules over a copied `__dict__` (meta-learning)", lambda m: cloned(m)(inputs()).detach()),
    Tool("clones", "`torch.nn.parallel.replicate` (DataParallel)", lambda m: replicated(m)(inputs()).detach()),
    Tool("averages", "`AveragedModel`", averaged),
    Tool("averages", "a copy that follows (polyak)", lambda m: moved_towards(m, lambda each: each)),
]
