"""The oracle itself, held against a third way of computing: finite differences and written-out AdamW."""

import numpy as np
import pytest
import torch

from tied.study import reference
from tied.study.digits import load
from tied.study.recipes import TIED, UNTIED, start
from tied.study.reference import Reference, effective_decoder_weight, parts


@pytest.fixture
def images() -> torch.Tensor:
    return load(torch.float64).images[:640].unflatten(0, (20, 32))


def loss(weight: np.ndarray, b: np.ndarray, c: np.ndarray, x: np.ndarray) -> float:
    return float(((np.tanh(x @ weight.T + b) @ weight + c - x) ** 2).mean())


def test_gradient_is_that_of_finite_differences(images):
    oracle = Reference(parts(start(0)))
    x, values = (
        images[0].numpy(),
        [leaf.detach().numpy() for leaf in (oracle.weight, oracle.encoder_bias, oracle.decoder_bias)],
    )
    gradient = oracle.gradient(images[0]).numpy()
    for row, column in [(0, 20), (7, 33), (15, 43)]:
        step = np.zeros_like(values[0])
        step[row, column] = 1e-6
        slope = (loss(values[0] + step, *values[1:], x) - loss(values[0] - step, *values[1:], x)) / 2e-6
        assert gradient[row, column] == pytest.approx(slope, rel=1e-6)


def test_step_is_adamw_with_clipping(images):
    oracle = Reference(parts(start(0)))
    before, gradient = oracle.weight.detach().clone(), oracle.gradient(images[0])
    norm = oracle.step(images[0])
    clipped = gradient * reference.CLIP_NORM / (norm + 1e-6)
    decayed = before * (1 - reference.LEARNING_RATE * reference.WEIGHT_DECAY)
    expected = decayed - reference.LEARNING_RATE * clipped / (clipped.abs() + 1e-8)
    torch.testing.assert_close(oracle.weight.detach(), expected, rtol=0, atol=1e-12)


def test_clipping_acts_in_every_compared_step(images):
    oracle = Reference(parts(start(0)))
    assert min(oracle.step(batch) for batch in images) > reference.CLIP_NORM


def test_decoder_weight_is_measured_exactly_and_nothing_changes():
    model = UNTIED.model(3)
    with torch.no_grad():
        model.decoder.weight.copy_(torch.randn(64, 16))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert torch.equal(effective_decoder_weight(model), model.decoder.weight)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_spread_and_difference():
    tied, untied = parts(TIED.model(0)), parts(UNTIED.model(1))
    assert tied.spread() == 0
    untied.decoder_weight[3, 4] += 0.5
    assert untied.spread() == pytest.approx(0.5)
    assert tied.largest_difference(tied) == 0
    assert tied.largest_difference(untied) > 0.4
