"""Rows on what users do to the second name: freeze it, write it, initialize it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tied.study.matrix.law import Check, batch, bound, largest, law, near
from tied.study.matrix.row import row
from tied.study.matrix.subject import Subject
from tied.study.reference import clipped_step, mean_squared_error, optimizer_for

THEME = "user"


def frozen(subject: Subject) -> list[Check]:
    """Train for a step and check that neither use of the weight moved."""
    before = subject.decoding_matrix(), subject.leaves()[subject.main].detach().clone()
    trained = [parameter for parameter in subject.model.parameters() if parameter.requires_grad]
    if trained:
        inputs, goals = batch(subject, 1)
        clipped_step(optimizer_for(trained), lambda: mean_squared_error(subject(inputs), goals))
    after = subject.decoding_matrix(), subject.leaves()[subject.main].detach()
    moved = [largest(new - old) for new, old in zip(after, before, strict=True)]
    return [
        near("frozen second use", moved[0], bound(subject), "after a step, the second use"),
        near("frozen source", moved[1], 0.0, "after a step, the source"),
    ]


@row(THEME)
def freeze_source(subject: Subject) -> list[Check]:
    """`encoder.weight.requires_grad_(False)`: a step moves neither use, and the rest trains as it should."""
    subject.leaves()["weight"].requires_grad_(False)
    return [*frozen(subject), *law(subject)]


@row(THEME)
def freeze_dec_param(subject: Subject) -> list[Check]:
    """`model.get_parameter("decoder.weight").requires_grad_(False)`: a step moves neither use."""
    subject.model.get_parameter(subject.column.target_key).requires_grad_(False)
    return frozen(subject)


@row(THEME)
def freeze_dec_module(subject: Subject) -> list[Check]:
    """`model.decoder.requires_grad_(False)`: a step moves neither use."""
    subject.target.requires_grad_(False)
    return frozen(subject)


def _second_weight(subject: Subject) -> Tensor:
    weight = subject.target.weight
    assert isinstance(weight, Tensor)
    return weight


def _written(subject: Subject, values: Tensor) -> Check:
    """Check that the model decodes with what was written, in whichever orientation the module keeps it."""
    inputs, _ = batch(subject, 1)
    with torch.no_grad():
        subject(inputs)
        used = subject.decoding_matrix()
    found = min(largest(used - form) for form in (values, values.t()) if form.shape == used.shape)
    return near("written", found, bound(subject), "the matrix that decodes, from what was written,")


@row(THEME, refusal="a tied weight is set at its source")
def write_dec_weight(subject: Subject) -> list[Check]:
    """`model.decoder.weight = nn.Parameter(...)`: both uses take the values, or it is refused."""
    shape = getattr(subject.target, "weight", subject.matrix(subject.leaves()["weight"])).shape
    values = torch.randn(shape, dtype=subject.dtype)
    subject.target.weight = nn.Parameter(values.clone())
    return [_written(subject, values), *law(subject)]


@row(THEME)
def init_dec_weight(subject: Subject) -> list[Check]:
    """`nn.init.normal_(model.decoder.weight)`: both uses take the values."""
    nn.init.normal_(_second_weight(subject))
    return [_written(subject, _second_weight(subject).detach().clone()), *law(subject)]


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.3)


@row(THEME)
def apply_init(subject: Subject) -> Subject:
    """`model.apply(init)`, where `init` draws the weight of every linear layer and embedding."""
    torch.manual_seed(0)
    return subject.then(subject.model.apply(_init))
