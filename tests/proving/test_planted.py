"""A bench of planted models: those that look tied and are not, and those that look odd and are right."""

import pytest
import torch
from proving.planted.planted import Planted
from proving.planted.right import RIGHT
from proving.planted.wrong import WRONG

import tied


@pytest.mark.parametrize("case", WRONG, ids=str)
def test_what_is_wrong_is_refused_with_its_reason(case: Planted) -> None:
    torch.manual_seed(0)
    model = case.build()
    before = {name: (tensor._version, tensor.detach().clone()) for name, tensor in model.state_dict().items()}
    with pytest.raises(tied.SharingError, match=case.says):
        tied.verify(model, *case.inputs, **case.options)
    for name, tensor in model.state_dict().items():
        assert (tensor._version, tensor.tolist()) == (before[name][0], before[name][1].tolist())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("case", RIGHT, ids=str)
def test_what_is_right_is_proved(case: Planted) -> None:
    torch.manual_seed(0)
    model = case.build()
    before = {name: (tensor._version, tensor.detach().clone()) for name, tensor in model.state_dict().items()}
    proof = tied.verify(model, *case.inputs, **case.options)
    assert case.says in str(proof)
    assert case.says == "It shares nothing." or "It shares nothing." not in str(proof)
    for name, tensor in model.state_dict().items():
        assert (tensor._version, tensor.tolist()) == (before[name][0], before[name][1].tolist())
