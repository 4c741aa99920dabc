"""Averages of models and of parts of them."""

import copy

import pytest
import torch
from battery.subjects import TIES, inputs, tied_pair
from torch import nn
from torch.optim.swa_utils import AveragedModel

import tied

TRANSFORMS = pytest.mark.parametrize("kind", [kind for kind in TIES if kind != "identity"])


@TRANSFORMS
def test_an_average_of_a_part_is_refused(kind: str) -> None:
    model = tied_pair(kind)
    with pytest.raises(tied.KindError) as error:
        AveragedModel(nn.Sequential(model.b, model.c))
    assert str(error.value) == (
        "An average of this part would go astray: its copy has the weight as one Parameter more.\n"
        f"  found:    AveragedModel of a part with weight = {TIES[kind][0]}\n"
        "  expected: a model that holds both ends of its ties\n"
        "  fix:      average the model: AveragedModel(model), whose part then is the average; "
        "or tied.untie(model) first\n"
        "The model was not changed."
    )


@TRANSFORMS
def test_the_ways_out_work(kind: str) -> None:
    model = tied_pair(kind)
    average = AveragedModel(model)
    with torch.no_grad():
        model.a.weight.mul_(3)
    for _ in range(2):
        average.update_parameters(model)
    assert torch.equal(average.module.b.weight, model.b.weight)
    alone = AveragedModel(copy.deepcopy(model.b))  # a part for itself, which nothing else shares
    torch.testing.assert_close(alone(inputs()), model.b(inputs()))
    tied.untie(model)
    AveragedModel(nn.Sequential(model.b, model.c))
