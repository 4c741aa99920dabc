"""`mirror` makes two layers over one Parameter that is handed in."""

import copy

import pytest
import torch
from torch import nn

import tied
from tied.nn import TiedLinear, mirror


def test_the_first_layer_owns_the_very_parameter():
    weight = nn.Parameter(torch.randn(4, 6))
    there, back = mirror(weight)
    assert there.weight is weight
    assert type(there) is nn.Linear
    assert (there.in_features, there.out_features) == (6, 4)
    assert isinstance(back, TiedLinear)
    assert [name for name, _ in back.named_parameters()] == ["bias"]
    assert torch.equal(back.weight, weight.t())


def test_it_is_counted_and_stored_once():
    model = nn.Sequential(*mirror(nn.Parameter(torch.randn(4, 6))))
    assert list(model.state_dict()) == ["0.weight", "0.bias", "1.bias"]
    assert [str(tie) for tie in tied.ties(model)] == ["1.weight = 0.weight.T"]


def test_the_values_stay_and_biases_are_drawn():
    weight = nn.Parameter(torch.full((40, 60), 0.5))
    there, back = mirror(weight)
    assert (weight == 0.5).all()
    assert 0.1 / 60**0.5 < there.bias.abs().max() <= 1 / 60**0.5
    assert 0.1 / 40**0.5 < back.bias.abs().max() <= 1 / 40**0.5


def test_without_biases_and_in_the_weights_dtype():
    there, back = mirror(nn.Parameter(torch.randn(4, 6, dtype=torch.float64)), bias=False)
    assert there.bias is None
    assert back.bias is None
    there, back = mirror(nn.Parameter(torch.randn(4, 6, dtype=torch.complex64)))
    assert there.bias.dtype == back.bias.dtype == torch.complex64


def test_loading_by_assignment_keeps_the_two_together():
    model = nn.Sequential(*mirror(nn.Parameter(torch.randn(4, 6))))
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    with torch.no_grad():
        model[0].weight.zero_()
    assert not model[1].weight.any()


KIND = """\
mirror(weight)
  The weight is not a Parameter, so no layer could own it.
  found:    Tensor
  expected: an nn.Parameter of shape (out, in)
  fix:      mirror(nn.Parameter(tensor)); for the weight of a layer that exists: TiedLinear(layer)
The model was not changed."""

SHAPE = """\
mirror(weight)
  The weight is not a matrix.
  found:    a Parameter of shape (3,)
  expected: shape (out, in)
  fix:      weight.flatten(1) before it becomes a Parameter
The model was not changed."""

DTYPE = """\
mirror(weight)
  The weight holds no floating-point numbers, so it cannot be trained.
  found:    torch.int64
  expected: a floating-point dtype
  fix:      convert it first: weight.float()
The model was not changed."""


@pytest.mark.parametrize(
    ("weight", "error", "message"),
    [
        (torch.zeros(3, 4), tied.KindError, KIND),
        (nn.Parameter(torch.zeros(3)), tied.ShapeError, SHAPE),
        (nn.Parameter(torch.ones(3, 4).long(), requires_grad=False), tied.DtypeError, DTYPE),
    ],
)
def test_wrong_use(weight, error, message):
    with pytest.raises(error) as caught:
        mirror(weight)
    assert str(caught.value) == message
