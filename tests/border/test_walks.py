"""Random walks over what is done to a stack of layers that share: whatever the order, nothing comes apart in silence.

After each step every listed tie holds, every weight that a layer reads is among the parameters, and the state dict
names it. A step that does not apply (pickling a parametrized module, say) ends the walk, as torch's own error.
"""

import copy
import pickle
import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import Parameter
from torch.nn.utils import parametrizations, parametrize

import tied


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(4))
        self.out = nn.Linear(3, 3)
        tied.tie(self, {f"layers.{n}.weight": "layers.0.weight" for n in (2, 3)} | {"out.weight": "layers.1.weight"})

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return self.out(x)


def new(model: Stack) -> nn.Linear:
    return nn.Linear(3, 3).to(next(model.parameters()).dtype)


def inputs(model: Stack) -> Tensor:
    return torch.ones(1, 3, dtype=next(model.parameters()).dtype)


def owns(layer: nn.Module) -> bool:
    is_tied = "weight" in vars(layer).get("_tied", {})
    return isinstance(layer, nn.Linear) and "weight" in layer._parameters and not is_tied


def values(model: Stack) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def trained(model: Stack) -> None:
    model.zero_grad()  # a gradient is in memory that nobody wrote, too, after `to_empty`
    model(inputs(model)).sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.01).step()


def with_memory_anew(model: Stack) -> None:
    state = values(model)
    model.to("meta").to_empty(device="cpu").load_state_dict(state)


def swapped(model: Stack) -> None:
    model.layers[0], model.layers[1] = model.layers[1], model.layers[0]


def normed(model: Stack) -> None:
    if owns(model.layers[0]):
        parametrizations.weight_norm(model.layers[0])


def bared(model: Stack) -> None:
    if parametrize.is_parametrized(model.layers[0]):
        parametrize.remove_parametrizations(model.layers[0], "weight")


def replaced(model: Stack) -> None:
    if owns(model.layers[0]):
        model.layers[0].weight = Parameter(torch.randn_like(model.layers[0].weight))


def called(model: Stack) -> None:
    if "weight" in model.layers[2]._parameters:
        given = {"weight": torch.ones_like(model.layers[2].weight)}
        functional_call(model.layers[2], given, (inputs(model),))


STEPS: dict[str, Callable[[Stack], object]] = {
    "double": lambda m: m.double(),
    "float": lambda m: m.float(),
    "load": lambda m: m.load_state_dict(values(m)),
    "assign": lambda m: m.load_state_dict(values(m), assign=True),
    "replace": replaced,
    "new module": lambda m: m.layers.__setitem__(0, new(m)),
    "insert": lambda m: m.layers.insert(0, new(m)),
    "pop": lambda m: m.layers.pop(0) if len(m.layers) > 3 else None,
    "swap": swapped,
    "norm": normed,
    "no norm": bared,
    "train": trained,
    "call": called,
    "freeze and thaw": lambda m: m.requires_grad_(False).requires_grad_(True),
    "memory": with_memory_anew,
    "wrap": lambda m: m.layers.__setitem__(0, nn.Sequential(m.layers[0])) if owns(m.layers[0]) else None,
}
COPIES: dict[str, Callable[[Stack], Stack]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
}


def assert_whole(model: Stack) -> None:
    parameters = {id(parameter) for parameter in model.parameters()}
    for tie in tied.ties(model):
        (source,) = tie.source.sources()
        ends = [model.get_submodule(".".join(address[:-1])) for address in (tie.address, source)]
        assert torch.equal(getattr(ends[0], tie.address[-1]), getattr(ends[1], source[-1])), str(tie)
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear) and "weight" in module._parameters:
            assert id(module.weight) in parameters, path
    assert dict(model.named_parameters(remove_duplicate=False)).keys() <= model.state_dict().keys()


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("seed", range(60))
def test_nothing_comes_apart(seed: int) -> None:
    choose = random.Random(seed)
    torch.manual_seed(seed)
    model, done = Stack(), list[str]()
    for _ in range(14):
        step = choose.choice([*STEPS, *COPIES])
        done.append(step)
        try:
            if step in COPIES:
                model = COPIES[step](model)
            else:
                STEPS[step](model)
        except tied.SourceGoneError:
            return  # a computed source left its model: loud, with a way out
        except (RuntimeError, AttributeError) as error:
            if step != "pickle":  # torch does not pickle parametrized modules
                raise AssertionError(done) from error
            return
        try:
            assert_whole(model)
        except tied.SourceGoneError:
            return
        except AssertionError as error:
            raise AssertionError(done) from error
