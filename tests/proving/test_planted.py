"""A bench of planted models: those that look tied and are not, and those that look odd and are right.

`verify` separates them with no error, gives the reason of each wrong one, and leaves every model as it was.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from proving.planted.planted import Planted
from proving.planted.right import RIGHT
from proving.planted.wrong import WRONG
from torch import nn

import tied


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Assert that bits, versions, gradients, hooks and random numbers are afterwards what they were."""

    def state() -> list[object]:
        tensors = [(id(t), t._version, t.requires_grad, t.tolist(), t.grad) for t in every(model)]
        hooks = [(m.training, dict(m._forward_pre_hooks), dict(m._forward_hooks)) for m in model.modules()]
        return [tensors, hooks, torch.get_rng_state().tolist()]

    before = state()
    yield
    assert state() == before


def every(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


def test_the_bench_is_large_enough() -> None:
    assert len(WRONG) >= 30
    assert len(RIGHT) >= 30
    assert len({str(case) for case in (*WRONG, *RIGHT)}) == len(WRONG) + len(RIGHT)


@pytest.mark.parametrize("case", WRONG, ids=str)
def test_what_is_wrong_is_refused_with_its_reason(case: Planted, golden: Callable[[str, str], None]) -> None:
    torch.manual_seed(0)
    model = case.build()
    with unchanged(model), pytest.raises(tied.SharingError, match=case.says) as caught:
        tied.verify(model, *case.inputs, **case.options)
    golden(f"verify/wrong/{case}.txt", f"{case.build.__doc__}\n\n{caught.value}\n")


@pytest.mark.parametrize("case", RIGHT, ids=str)
def test_what_is_right_is_proved(case: Planted) -> None:
    torch.manual_seed(0)
    model = case.build()
    with unchanged(model):
        proof = tied.verify(model, *case.inputs, **case.options)
    assert case.says in str(proof)
    assert (case.says == "It shares nothing.") == ("It shares nothing." in str(proof))
    assert "held elsewhere" not in str(proof)
