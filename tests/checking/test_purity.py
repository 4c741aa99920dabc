"""Looking has no effect: bits, identities, versions, attributes, random numbers, hooks, compiled programs.

Each eye looks at models whose forward and hooks write: into weights, buffers, lists, caches, the generators.
"""

import collections
import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tied


class Net(nn.Module):
    """Two layers that share, and a batch norm, which counts."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.norm = nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.register_buffer("bank", torch.zeros(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.norm(torch.tanh(self.a(x))))


class Clipping(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.a.weight.data.clamp_(-0.1, 0.1)
        with torch.no_grad():
            self.b.bias.div_(self.b.bias.norm())
        return super().forward(x)


class Averaging(Net):
    """A teacher that follows, and a counter of steps."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher, self.steps = copy.deepcopy(self.b).requires_grad_(False), 0

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.teacher.weight.lerp_(self.b.weight, 0.1)
        self.steps += 1
        return super().forward(x) + self.teacher(x)


class Remembering(Net):
    """A memory bank, a cache of the last forward, and lists."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.seen, self.queue = None, [], collections.deque(maxlen=2)

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        self.bank = torch.cat([self.bank[1:], y.detach()[:1]])
        self.last = y
        self.seen.append(len(self.seen))
        self.queue.append(y.detach())
        return y


class Writing(Net):
    """It writes into its inputs, and draws from every generator."""

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(0.5)
        return super().forward(x) * (1 + random.random() * 0 + float(np.random.rand()) * 0 + torch.rand(1) * 0)


ACTIVATIONS: list[Tensor] = []


class Hooked(Net):
    """Hooks that collect into lists outside, count, and copy."""

    def __init__(self) -> None:
        super().__init__()
        mine: list[Tensor] = []
        self.a.register_forward_hook(lambda _, __, out: mine.append(out))
        self.a.register_forward_hook(lambda _, __, out: ACTIVATIONS.append(out))
        self.b.register_forward_pre_hook(self.count)
        self.mine, self.counted = mine, 0

    def count(self, *_: object) -> None:
        self.counted += 1
        self.bank.add_(1)


class Following(Net):
    """The tie by copying, as it is in the wild."""

    def __init__(self) -> None:
        super().__init__()
        self.b.register_forward_pre_hook(lambda *_: follow(self))


def follow(model: Net) -> None:
    model.b.weight.data.copy_(model.a.weight.data.t().clone())


KINDS = [Net, Clipping, Averaging, Remembering, Writing, Hooked, Following]
TIES: dict[str, Callable[[Any], Any]] = {
    "untied": lambda model: None,
    "identity": lambda model: tied.tie(model, "b.weight", "a.weight"),
    "transposed": lambda model: tied.tie(model, "b.weight", "a.weight.T"),
    "scaled": lambda model: tied.tie(model, "b.weight", "2 * a.weight"),
    "plain": lambda model: setattr(model.b, "weight", model.a.weight),
    "half-tied": lambda model: setattr(model.b, "weight", nn.Parameter(model.a.weight.t())),
    "warm": lambda model: model(inputs()),
}
EYES: dict[str, Callable[[Any, Tensor], Any]] = {
    "check": lambda model, x: str(tied.check(model)),
    "check with inputs": lambda model, x: str(tied.check(model, x)),
    "check an optimizer": lambda model, x: tied.check(model, optimizer=torch.optim.Adam(model.parameters())).to_json(),
    "verify": lambda model, x: tied.verify(model, x, steps=1),
    "tension": lambda model, x: tied.tension(model, lambda m, b: m(b).square().mean(), [x], optimizer="sgd"),
    "ties": lambda model, x: (tied.ties(model), repr(model), [str(tie) for tie in tied.ties(model)]),
    "read": lambda model, x: [model.b.weight.shape, *model.state_dict(), *dict(model.named_parameters())],
}


def inputs() -> Tensor:
    return torch.linspace(-1, 1, 20).reshape(5, 4)


def value_of(value: Any) -> Any:
    if isinstance(value, Tensor):
        gradient = id(value.grad) if value.is_leaf else None
        return (id(value), value._version, value.data_ptr(), value.requires_grad, value.tolist(), gradient)
    if isinstance(value, list | tuple | collections.deque):
        return (id(value), [value_of(each) for each in value])
    if isinstance(value, dict):
        return (id(value), [(key, value_of(dict.__getitem__(value, key))) for key in dict.keys(value)])
    return (id(value), value) if isinstance(value, int | str | float) else id(value)


def snapshot(model: nn.Module, x: Tensor) -> list[Any]:
    rows: list[Any] = [value_of(x), len(ACTIVATIONS)]
    for path, module in model.named_modules():
        rows += [(path, type(module), module.training), value_of(vars(module))]
    rows += [[(str(tie), str(tie.source)) for tie in tied.ties(model)]]
    rows += [torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()]
    return rows


@pytest.mark.parametrize("eye", EYES)
@pytest.mark.parametrize("tie", TIES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_look_changes_nothing(kind: type[Net], tie: str, eye: str) -> None:
    model, x = kind(), inputs()
    TIES[tie](model)
    for _ in range(2):
        before = snapshot(model, x)
        try:
            EYES[eye](model, x)
        except tied.TieError:
            assert eye in ("verify", "tension"), "which refuse to train some of these"
        assert snapshot(model, x) == before


@pytest.mark.parametrize("eye", EYES)
@pytest.mark.parametrize("tie", ["untied", "identity", "transposed", "scaled"])
def test_a_look_keeps_compiled_programs(tie: str, eye: str) -> None:
    torch._dynamo.reset()
    model, x, compiled = Net().eval(), inputs(), list[torch.fx.GraphModule]()
    TIES[tie](model)

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        compiled.append(graph)
        return graph.forward

    run = torch.compile(model, backend=backend)
    wanted = run(x)
    count = len(compiled)
    assert count
    try:
        EYES[eye](model, x)
    except tied.TieError:
        assert eye in ("verify", "tension")
    assert torch.equal(run(x), wanted)
    assert len(compiled) == count
