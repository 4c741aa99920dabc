"""Training a tied model is training its one-parameter reference: every optimizer, every transform."""

from collections.abc import Callable

import pytest
import torch
from corpus import CASES, Case, Reference, distance, loss
from torch.optim import SGD, Adam, AdamW, Optimizer

import tied

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": lambda parameters: SGD(parameters, lr=0.05),
    "momentum-decay": lambda parameters: SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.1),
    "adam": lambda parameters: Adam(parameters, lr=0.02),
    "adamw": lambda parameters: AdamW(parameters, lr=0.02, weight_decay=0.1),
}
STEPS, CLIP = 20, 0.5


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_training_equals_the_one_parameter_reference(case: Case, optimizer: str) -> None:
    model = case.build()
    tied.tie(model, case.target, case.source)
    reference = Reference(case, model)
    ours, theirs = list(model.parameters()), reference.parameters()
    assert [p.shape for p in ours] == [p.shape for p in theirs]
    pairs = [(model, ours, OPTIMIZERS[optimizer](ours)), (reference, theirs, OPTIMIZERS[optimizer](theirs))]
    for step in range(STEPS):
        norms = []
        for subject, parameters, stepper in pairs:
            stepper.zero_grad()
            loss(subject(case.inputs(step))).backward()
            norms.append(torch.nn.utils.clip_grad_norm_(parameters, CLIP))
            stepper.step()
        torch.testing.assert_close(norms[0], norms[1], rtol=1e-12, atol=0)
    assert distance(model, reference) <= 1e-12
    states = [sum(len(state) for state in stepper.state.values()) for _, _, stepper in pairs]
    assert states[0] == states[1]


def test_the_law_can_fail() -> None:
    """The popular recipe, two Parameters over one memory, breaks it under Adam."""
    case = next(case for case in CASES if case.source == "encoder.weight.T")
    model = case.build()
    model.decoder.weight = torch.nn.Parameter(model.encoder.weight.t())
    reference = Reference(case, model)
    pairs = [(model, Adam(model.parameters(), lr=0.02)), (reference, Adam(reference.parameters(), lr=0.02))]
    for step in range(3):
        for subject, stepper in pairs:
            stepper.zero_grad()
            loss(subject(case.inputs(step))).backward()
            stepper.step()
    assert (model.encoder.weight - reference.tensors["encoder.weight"]).abs().max() > 1e-3
