"""What a Parameter is beside its values outlives a tie."""

import copy
import pickle
from typing import Any

import pytest
import torch
from battery.subjects import TIES
from torch import Tensor, nn
from torch.nn import Parameter
from two_layers import Pair

import tied


class Scaled(Parameter):
    """A Parameter with a class of its own, as quantizers and tensor-parallel engines have them."""

    def __new__(cls, data: Tensor, *, scale: float) -> Any:
        made = super().__new__(cls, data)
        made.scale = scale
        return made


class Taught(nn.Module):
    """A module whose Parameter has a class of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = Scaled(torch.ones(4, 4, dtype=torch.float64), scale=3.0)


def marked() -> Pair:
    model = Pair()
    model.b.weight.no_decay = True
    model.b.weight.history = torch.ones(4)
    model.a.weight.no_decay = False
    return model


@pytest.mark.parametrize("kind", TIES)
def test_attributes_are_back_after_untie(kind: str) -> None:
    model = marked()
    tied.tie(model, "b.weight", TIES[kind][0])
    tied.untie(model)
    assert model.b.weight.no_decay
    assert not hasattr(model.b.weight, "history")  # a tensor of the old weight: memory, and not true any more
    assert not model.a.weight.no_decay


@pytest.mark.parametrize("kind", ["identity", "transposed"])
@pytest.mark.parametrize("how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), lambda m: m.double()])
def test_attributes_go_along_with_a_copy(kind: str, how: Any) -> None:
    model = marked()
    tied.tie(model, "b.weight", TIES[kind][0])
    twin = how(model)
    tied.untie(twin)
    assert twin.b.weight.no_decay


@pytest.mark.parametrize("source", ["a.weight", "a.weight.T", "2 * a.weight"])
def test_the_class_is_back_after_untie(source: str) -> None:
    model = nn.ModuleDict({"a": nn.Linear(4, 4).double(), "b": Taught()})
    tied.tie(model, "b.weight", source)
    value = model.b.weight.detach().clone()
    tied.untie(model)
    assert type(model.b.weight) is Scaled
    assert model.b.weight.scale == 3.0
    assert model.b.weight.requires_grad
    assert model.b.weight.is_leaf
    assert torch.equal(model.b.weight.detach(), value)
    model.b.weight.sum().backward()
    assert model.b.weight.grad is not None


def test_marks_outlive_a_chain() -> None:
    """A target whose source becomes a target itself is tied anew."""
    model = nn.ModuleDict({name: nn.Linear(4, 4) for name in "abc"})
    model.c.weight.no_decay = True
    tied.tie(model, "c.weight", "b.weight.T")
    tied.tie(model, "b.weight", "a.weight")
    tied.untie(model, "c.weight")
    assert model.c.weight.no_decay


def test_marks_outlive_being_cut_and_retied() -> None:
    model = marked()
    tied.tie(model, "b.weight", "a.weight.T")
    model.b._parameters["weight"] = Parameter(torch.ones(4, 4, dtype=torch.float64))
    tied.retie(model, keep="source")
    tied.untie(model)
    assert model.b.weight.no_decay


@pytest.mark.parametrize("kind", TIES)
def test_what_is_untied_in_inference_mode_can_be_trained(kind: str) -> None:
    model = Pair()
    with torch.inference_mode():
        tied.tie(model, "b.weight", TIES[kind][0])
        tied.untie(model)
    model.b.weight.square().sum().backward()
    assert model.b.weight.grad is not None
