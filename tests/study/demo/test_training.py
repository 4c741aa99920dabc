"""The training loop: the plain one, the same for every recipe."""

import pytest
import torch
from torch import nn

from tied.study.demo import training
from tied.study.demo.training import reconstruction_error, step_milliseconds, train
from tied.study.digits import load, split
from tied.study.recipes import BY_NAME, TIED


@pytest.fixture(scope="module")
def digits():
    return split(load(), 0)


def test_errors_fall_and_are_those_of_the_model(digits):
    model = TIED.model(0)
    epochs = list(train(model, digits, epochs=3, seed=0))
    assert [epoch.number for epoch in epochs] == [1, 2, 3]
    assert epochs[0].held_out_error > epochs[1].held_out_error > epochs[2].held_out_error
    images = digits[1].images
    with torch.no_grad():
        assert epochs[-1].held_out_error == pytest.approx(float(((model(images) - images) ** 2).mean()))


def test_same_seed_same_weights(digits):
    models = [TIED.model(0) for _ in range(2)]
    for model in models:
        list(train(model, digits, epochs=1, seed=4))
    assert torch.equal(*(model.encoder.weight for model in models))


def test_tied_trains_as_the_functional_form(digits):
    errors = [list(train(BY_NAME[name].model(0), digits, epochs=2, seed=0)) for name in ("tied", "functional form")]
    assert errors[0][-1].held_out_error == pytest.approx(errors[1][-1].held_out_error, rel=1e-5)


def test_error_of_a_model_that_says_zero(digits):
    class Zero(nn.Module):
        def forward(self, x):
            return torch.zeros_like(x)

    images = digits[1].images
    assert reconstruction_error(Zero(), images) == pytest.approx(float((images**2).mean()))


def test_timing_takes_turns(monkeypatch):
    turns, clock = [], iter(range(100))

    def seconds(trainer, images, steps):
        turns.append(trainer.model)
        return next(clock) * steps / 1000

    monkeypatch.setattr(training, "_seconds", seconds)
    models = {"a": nn.Linear(1, 1), "b": nn.Linear(1, 1)}
    medians = list(step_milliseconds(models, torch.zeros(1, 1), rounds=3, steps=5))
    assert turns == [models["a"], models["b"]] * 4
    assert medians == [{"a": 2, "b": 3}, {"a": 3, "b": 4}, {"a": 4, "b": 5}]
