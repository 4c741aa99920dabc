"""The verdicts tell a tie from a half-tie and from none, and looking changes nothing."""

import copy

import pytest
import torch

from tied.study.demo.survival import follows, survival, trained_difference, verdict
from tied.study.digits import load
from tied.study.recipes import Recipe, registered_twice, second_parameter, start


@pytest.fixture
def batches() -> torch.Tensor:
    return load(torch.float64).images[:32][None]


def test_three_verdicts(batches):
    tied = registered_twice(start(0, torch.float64))
    half = second_parameter(start(0, torch.float64))
    cut = copy.deepcopy(second_parameter(start(0, torch.float64)))
    assert [verdict(model, batches) for model in (tied, half, cut)] == ["yes", "half", "no"]


def test_equal_values_alone_are_no_tie(batches):
    apart = start(0, torch.float64)
    assert torch.equal(apart.decoder.weight, apart.encoder.weight.t())
    assert verdict(apart, batches) == "no"


def test_follows_puts_the_values_back():
    model = registered_twice(start(0))
    before = model.encoder.weight.detach().clone()
    assert follows(model)
    assert torch.equal(model.encoder.weight, before)


def test_difference_counts_biases_too(batches):
    model = registered_twice(start(0, torch.float64))
    model.encoder.bias.requires_grad_(False)
    assert trained_difference(model, batches) > 1e-3


def test_a_refusal_is_reported():
    def frozen(model):
        model.__deepcopy__ = lambda _: (_ for _ in ()).throw(TypeError("no copies\nof me"))
        return registered_twice(model)

    found = survival(Recipe("frozen", "", frozen), 0, load(torch.float64).images[:32])
    assert found == {"deepcopy": "error: no copies", "double": "yes", "save_load": "half"}
