"""State dicts between a tied model, its plain twin, and a twin in which nothing is shared; with torch's metadata and
without, copied and assigned, strict and lenient.
"""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from battery.subjects import TIES, Pair, inputs, oracle, tied_pair
from torch import Tensor, nn
from torch.nn import Parameter

import tied

WITH_METADATA = pytest.mark.parametrize("metadata", [True, False], ids=["metadata", "a plain dict"])
ASSIGNED = pytest.mark.parametrize("assign", [False, True], ids=["copied", "assigned"])


def saved(model: nn.Module, *, metadata: bool) -> dict[str, Any]:
    state = copy.deepcopy(model.state_dict())
    assert hasattr(state, "_metadata")
    return state if metadata else dict(state)


def changed(model: nn.Module) -> nn.Module:
    """Give a model other values than it was built with; a twin in which nothing is shared stays one of equal values."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    return model


def untied_pair(kind: str) -> nn.Module:
    """Return a model with the values of a tied one, and nothing tied."""
    model = Pair(kind)
    held = {"a.weight": model.a.weight, "spare": model.spare}
    model.b.weight = Parameter(TIES[kind][1](held).detach().clone())
    return model


@ASSIGNED
@WITH_METADATA
@pytest.mark.parametrize("kind", TIES)
@pytest.mark.parametrize("origin", [tied_pair, untied_pair])
def test_a_tied_model_loads_what_agrees(
    origin: Callable[[str], nn.Module], kind: str, metadata: bool, assign: bool
) -> None:
    model, given = tied_pair(kind), changed(origin(kind))
    state = saved(given, metadata=metadata)
    assert model.load_state_dict(state, assign=assign) == ([], [])
    torch.testing.assert_close(model(inputs()), given(inputs()))
    with torch.no_grad():
        model.a.weight.mul_(3)
    held = {"a.weight": model.a.weight, "spare": model.spare}
    assert torch.equal(model.b.weight, TIES[kind][1](held))


@ASSIGNED
@WITH_METADATA
@pytest.mark.parametrize("kind", TIES)
def test_a_tied_model_refuses_two_values(kind: str, metadata: bool, assign: bool) -> None:
    model = tied_pair(kind)
    given = untied_pair(kind)
    with torch.no_grad():
        given.b.weight.add_(1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(tied.ConflictError):
        model.load_state_dict(saved(given, metadata=metadata), assign=assign)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


@ASSIGNED
@WITH_METADATA
@pytest.mark.parametrize("to", [untied_pair, lambda kind: oracle("identity")], ids=["untied", "plain"])
def test_an_identity_is_loaded_anywhere(to: Callable[[str], nn.Module], metadata: bool, assign: bool) -> None:
    model, other = changed(tied_pair("identity")), to("identity")
    assert other.load_state_dict(saved(model, metadata=metadata), assign=assign) == ([], [])
    assert torch.equal(other(inputs()), model(inputs()))


@WITH_METADATA
@pytest.mark.parametrize("kind", [kind for kind in TIES if kind != "identity"])
def test_a_transform_s_target_has_no_name_and_torch_says_so(kind: str, metadata: bool) -> None:
    state = saved(tied_pair(kind), metadata=metadata)
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "b.weight"'):
        untied_pair(kind).load_state_dict(state)
    assert untied_pair(kind).load_state_dict(state, strict=False).missing_keys == ["b.weight"]


class Norms(nn.Module):
    """Two batch norms; shared as a whole, or not."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
        self.double()
        if how == "tied":
            tied.tie(self, "b", "a", buffers=True)
        if how == "plain":
            self.b.weight, self.b.bias = self.a.weight, self.a.bias
            self.b._buffers.update(self.a._buffers)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


def run(model: Norms) -> list[Tensor]:
    """Train for three steps, and return what the model computes in evaluation, and its statistics."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for seed in range(3):
        optimizer.zero_grad()
        model.train()(inputs(seed)).pow(3).sum().backward()
        optimizer.step()
    return [model.eval()(inputs(9)).detach(), *(buffer.clone() for buffer in model.b.buffers())]


def test_shared_statistics_are_those_of_plain_sharing() -> None:
    for one, other in zip(run(Norms("tied")), run(Norms("plain")), strict=True):
        assert torch.equal(one, other)


@ASSIGNED
@WITH_METADATA
@pytest.mark.parametrize("to", ["tied", "plain", "not"])
@pytest.mark.parametrize("origin", ["tied", "plain"])
def test_batch_norms_with_buffers_are_loaded(origin: str, to: str, metadata: bool, assign: bool) -> None:
    given, model = Norms(origin), Norms(to)
    run(given)
    assert model.load_state_dict(saved(given, metadata=metadata), assign=assign) == ([], [])
    assert torch.equal(model.eval()(inputs()), given(inputs()))
    if to == "tied":
        expected = run(given)
        for one, other in zip(run(model), expected, strict=True):
            assert torch.equal(one, other)


@WITH_METADATA
def test_statistics_that_differ_are_refused(metadata: bool) -> None:
    given = Norms("not")
    run(given)
    with pytest.raises(tied.ConflictError, match="differ in this state dict"):
        Norms("tied").load_state_dict(saved(given, metadata=metadata))
