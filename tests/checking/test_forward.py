"""Sharing inside a forward: what is used twice, what is used without its gradient, what is only copied."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Parameter
from torch.utils.checkpoint import checkpoint

import tied

X = torch.rand(3, 6, generator=torch.Generator().manual_seed(0))


class Model(nn.Module):
    """An encoder and a decoder, and a forward that is given."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(6, 4), nn.Linear(4, 6)
        self.bias, self.run = Parameter(torch.zeros(6)), run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, torch.relu(self.encoder(x)))


def uses(model: nn.Module, inputs: Any = X) -> dict[str, tuple[str, ...]]:
    return {group.names[0]: group.uses for group in tied.check(model, inputs).groups if group.uses}


def codes(model: nn.Module, inputs: Any = X) -> list[str]:
    return [finding.code for finding in tied.check(model, inputs).findings]


def new_parameter(m: Any, z: Tensor) -> Tensor:
    return F.linear(z, Parameter(m.encoder.weight.t()), m.bias)


def without_gradient(m: Any, z: Tensor) -> Tensor:
    with torch.no_grad():
        weight = m.encoder.weight.t() * 1
    return F.linear(z, weight, m.bias)


SHARED: dict[str, tuple[Callable[[Any, Tensor], Tensor], str]] = {
    "linear": (lambda m, z: F.linear(z, m.encoder.weight.t(), m.bias), "F.linear with its transpose in Model.forward"),
    "matmul": (lambda m, z: z @ m.encoder.weight + m.bias, "@ in Model.forward"),
    "addmm": (lambda m, z: torch.addmm(m.bias, z, m.encoder.weight), "torch.addmm in Model.forward"),
    "einsum": (lambda m, z: torch.einsum("bi,ij->bj", z, m.encoder.weight), "torch.einsum in Model.forward"),
    "scaled": (
        lambda m, z: F.linear(z, 2 * m.encoder.weight.t()),
        "F.linear with what is computed from it in Model.forward",
    ),
    "rows": (lambda m, z: z[:, :2] @ m.encoder.weight[:2], "@ with encoder.weight[:2] in Model.forward"),
    "moved": (
        lambda m, z: F.linear(z, m.encoder.weight.t().contiguous()),
        "F.linear with its transpose in Model.forward",
    ),
}
CUT: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "data": lambda m, z: F.linear(z, m.encoder.weight.data.t(), m.bias),
    "detach": lambda m, z: F.linear(z, m.encoder.weight.detach().t(), m.bias),
    "detach late": lambda m, z: z @ m.encoder.weight.clone().detach(),
    "no_grad": without_gradient,
    "new Parameter": new_parameter,
    "tensor": lambda m, z: z @ m.encoder.weight.detach().clone().requires_grad_(),
}


@pytest.mark.parametrize("how", SHARED)
def test_a_weight_that_is_used_twice_names_its_uses(how: str) -> None:
    run, use = SHARED[how]
    model = Model(run)
    assert uses(model) == {"encoder.weight": ("Linear 'encoder'", use)}
    assert tied.check(model, X).ok


@pytest.mark.parametrize("how", CUT)
def test_a_use_without_its_gradient_is_found(how: str) -> None:
    model = Model(CUT[how])
    (finding,) = tied.check(model, X).findings
    assert (finding.code, finding.severity, finding.names) == ("TIE111", "warning", ("encoder.weight",))
    model(X).square().sum().backward()
    found = model.encoder.weight.grad.clone()
    model.zero_grad()
    z = torch.relu(model.encoder(X))
    (z @ model.encoder.weight + (0 if "late" in how or how == "tensor" else model.bias)).square().sum().backward()
    assert not torch.allclose(found, model.encoder.weight.grad), "the gradient of one use is lost"


SILENT: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "as it is": lambda m, z: m.decoder(z),
    "another's weight, once": lambda m, z: F.linear(z, m.decoder.weight),
    "checkpoint": lambda m, z: checkpoint(m.decoder, z, use_reentrant=False),
    "reentrant": lambda m, z: checkpoint(m.decoder, z, use_reentrant=True),
    "penalty": lambda m, z: m.decoder(z) + 0.1 * m.encoder.weight.norm(),
    "shape": lambda m, z: m.decoder(z).expand_as(m.decoder(z)) + torch.zeros_like(m.encoder.weight).sum(),
    "halves": lambda m, z: torch.cat([z @ m.decoder.weight[:3].t(), z @ m.decoder.weight[3:].t()], 1),
    "straight through": lambda m, z: F.linear(
        z, m.decoder.weight + (m.decoder.weight.round() - m.decoder.weight).detach()
    ),
    "teacher": lambda m, z: m.decoder(z) + looking(m, z),
}


def rounded(weight: Tensor) -> Tensor:
    return weight + (weight.round() - weight).detach()


@torch.no_grad()
def looking(model: Any, z: Tensor) -> Tensor:
    return F.linear(z, model.decoder.weight, model.decoder.bias)


@pytest.mark.parametrize("how", SILENT)
def test_what_shares_nothing_or_means_it_is_no_finding(how: str) -> None:
    model = Model(SILENT[how])
    assert codes(model) == []
    if how != "teacher":
        assert not {name for name in uses(model) if "weight" in name and how != "shape"}


def test_a_parameter_used_in_a_loop() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.step = Parameter(torch.eye(6))

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(12):
                x = torch.tanh(x @ self.step)
            return x

    assert uses(Net()) == {"step": ("@ in Net.forward, 12 times",)}
    (group,) = tied.check(Net(), X).groups
    assert (group.state, group.transforms, group.shape) == ("called", ("12 uses",), (6, 6))


def test_slices_of_one_matrix_are_no_sharing() -> None:
    attention = nn.MultiheadAttention(6, 2, batch_first=True)
    assert uses(attention, (X[None], X[None], X[None])) == {}
    lstm = nn.LSTM(6, 6, 2, bidirectional=True)
    assert uses(lstm, X[None]) == {}
    assert uses(nn.TransformerEncoder(nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), 2), X[None]) == {}


def test_modules_that_share_are_told_once() -> None:
    """One module called twice, two modules with one Parameter and ties of `tied` have groups of their own."""
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    tied.tie(model, "1.weight", "0.weight.T")
    assert uses(model) == {}
    model[1] = model[0]
    assert uses(model) == {}
    plain = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    plain[1].weight = plain[0].weight
    assert uses(plain) == {}


# -- copies -------------------------------------------------------------------------------------------


def copy_in_forward(m: Any, z: Tensor) -> Tensor:
    with torch.no_grad():
        m.decoder.weight.copy_(m.encoder.weight.t())
    return m.decoder(z)


def data_in_forward(m: Any, z: Tensor) -> Tensor:
    m.decoder.weight.data = m.encoder.weight.data.t()
    return m.decoder(z)


def decode(m: Any, z: Tensor) -> Tensor:
    return m.decoder(z)


def write(model: Any) -> None:
    model.decoder.weight.data.copy_(model.encoder.weight.data.t())


def hooked(make: Callable[[Model], Callable[..., Any]]) -> Model:
    model = Model(decode)
    model.decoder.register_forward_pre_hook(make(model))
    return model


class Follower:
    """An object that holds a model and has a hook."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def hook(self, *_: object) -> None:
        write(self.model)

    __call__ = hook


GLOBAL: list[Any] = []


def follow_global(*_: object) -> None:
    write(GLOBAL[0])


def of_a_list(model: Model) -> Callable[..., None]:
    GLOBAL[:] = [model]
    return follow_global


COPYING: dict[str, Callable[[], Model]] = {
    "forward": lambda: Model(copy_in_forward),
    "data in forward": lambda: Model(data_in_forward),
    "argument": lambda: hooked(lambda m: lambda module, _: write(m)),
    "closure": lambda: hooked(lambda m: lambda *_: write(m)),
    "default": lambda: hooked(lambda m: lambda *_, model=m: write(model)),
    "partial": lambda: hooked(lambda m: functools.partial(lambda model, *_: write(model), m)),
    "method": lambda: hooked(lambda m: Follower(m).hook),
    "object": lambda: hooked(Follower),
    "global": lambda: hooked(of_a_list),
}


@pytest.mark.parametrize("how", COPYING)
def test_following_by_copying_is_found_and_leaves_the_model_alone(how: str) -> None:
    model = COPYING[how]()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    (finding,) = tied.check(model, X).findings
    assert (finding.code, finding.severity) == ("TIE112", "error")
    assert finding.message == (
        "decoder.weight is overwritten with encoder.weight.T in each forward: what it learns is lost, and the other "
        "does not learn from it."
    )
    assert finding.fix == 'tied.tie(model, "decoder.weight", "encoder.weight.T")'
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_frozen_copy_is_a_note() -> None:
    model = Model(copy_in_forward)
    model.decoder.weight.requires_grad_(False)
    assert [(f.code, f.severity) for f in tied.check(model, X).findings] == [("TIE112", "note")]


@torch.no_grad()
def average(m: Any, z: Tensor) -> Tensor:
    m.decoder.weight.lerp_(m.encoder.weight.t(), 0.1)
    m.decoder.weight.data = 0.9 * m.decoder.weight.data + 0.1 * m.encoder.weight.data.t()
    m.bias.mul_(0.9).add_(m.decoder.bias, alpha=0.1)
    return m.decoder(z)


@torch.no_grad()
def clip(m: Any, z: Tensor) -> Tensor:
    m.decoder.weight.copy_(m.decoder.weight.clamp(-1, 1))
    m.decoder.weight.div_(m.decoder.weight.norm())
    return m.decoder(z)


@pytest.mark.parametrize("run", [average, clip])
def test_averages_and_clipping_are_no_copies(run: Any) -> None:
    assert codes(Model(run)) == []


# -- the report ---------------------------------------------------------------------------------------


def test_a_report_with_uses(golden: Any) -> None:
    golden("check-forward.txt", str(tied.check(Model(CUT["data"]), X)))


def test_uses_are_data() -> None:
    report = tied.check(Model(SHARED["linear"][0]), X)
    (group,) = report.to_json()["groups"]
    assert group["uses"] == ["Linear 'encoder'", "F.linear with its transpose in Model.forward"]


def test_without_inputs_a_line_says_what_they_would_show() -> None:
    assert tied.check(Model(decode)).notes == (
        "With inputs, tied.check(model, inputs) also shows what is shared inside the forward.",
    )
    assert tied.check(Model(decode), X).notes == ()
    assert tied.check(nn.Identity()).notes == ()
