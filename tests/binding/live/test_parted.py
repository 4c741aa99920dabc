"""A copy of a part that has a Parameter of its own says so once, whatever else its module holds."""

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import tied

COPIES: dict[str, Callable[[Any], Any]] = {"deepcopy": copy.deepcopy, "pickle": lambda m: pickle.loads(pickle.dumps(m))}
BESIDE = {"nothing": {}, "an identity": {"b.bias": "a.bias"}, "another transform": {"b.bias": "2 * a.bias"}}


def model() -> nn.ModuleDict:
    return nn.ModuleDict({name: nn.Linear(4, 4) for name in "abc"})


def said_of(listing: Callable[[], object]) -> list[str]:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        listing()
    return [str(each.message) for each in said if each.category is tied.TieWarning]


@pytest.mark.parametrize("beside", BESIDE)
@pytest.mark.parametrize("how", COPIES)
def test_it_is_said_once_when_parameters_are_listed(how: str, beside: str) -> None:
    whole = model()
    tied.tie(whole, {"b.weight": "a.weight.T", **BESIDE[beside]})
    alone = COPIES[how](whole.b)
    assert said_of(lambda: alone(torch.rand(2, 4))) == [], "who only calls it need not know"
    (message,) = said_of(lambda: [*alone.named_parameters()])
    assert message.startswith("This Linear was copied without the source of weight = a.weight.T")
    assert ("'weight' and 'bias' are Parameters of their own" in message) == (beside == "another transform")
    assert said_of(lambda: [*alone.named_parameters()]) == []
    assert said_of(lambda: [*whole.named_parameters(), *whole.b.named_parameters()]) == []
    assert said_of(lambda: [*copy.deepcopy(alone).named_parameters()]) == [], "the copy of a copy is nothing new"


@pytest.mark.parametrize("how", COPIES)
def test_nothing_is_said_where_the_source_is_copied_after_its_target(how: str) -> None:
    whole = nn.ModuleDict({"b": nn.Linear(4, 4), "a": nn.Linear(4, 4)})
    tied.tie(whole, "b.weight", "a.weight.T")
    twin = COPIES[how](nn.ModuleDict({"outer": whole}))
    assert said_of(lambda: [*twin.named_parameters()]) == []
    assert torch.equal(twin.outer.b.weight, twin.outer.a.weight.T)


@pytest.mark.parametrize("order", ["bac", "abc"])
@pytest.mark.parametrize("how", COPIES)
def test_of_two_ties_only_the_one_without_its_source_is_said(how: str, order: str) -> None:
    whole = nn.ModuleDict({"part": nn.ModuleDict({name: nn.Linear(4, 4) for name in order if name != "c"})})
    whole["c"] = nn.Linear(4, 4)
    tied.tie(whole, {"part.b.weight": "2 * part.a.weight", "part.b.bias": "2 * c.bias"})
    twin = COPIES[how](whole.part)
    (message,) = said_of(lambda: [*twin.named_parameters()])
    assert "without the source of bias = 2 * c.bias: 'bias' is a Parameter" in message
    assert torch.equal(twin.b.weight, 2 * twin.a.weight)
    with pytest.raises(tied.KindError, match=r"bias = 2 \* c.bias"):
        AveragedModel(whole.part)


@pytest.mark.parametrize("beside", BESIDE)
def test_it_compiles_as_any_other(beside: str) -> None:
    torch._dynamo.reset()
    whole, x = model(), torch.rand(2, 4)
    tied.tie(whole, {"b.weight": "a.weight.T", **BESIDE[beside]})
    alone = copy.deepcopy(whole.b)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tied.TieWarning)
        assert torch.equal(torch.compile(alone, backend="eager", fullgraph=True)(x), alone(x))
