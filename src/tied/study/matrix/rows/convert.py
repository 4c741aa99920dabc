"""Rows on conversions: dtype, device and what torch's flags make of them."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

import torch
from torch import nn

from tied.study.matrix.row import row
from tied.study.matrix.subject import SEED, Subject

THEME = "convert"


@row(THEME)
def to_dtype(subject: Subject) -> Subject:
    """`model.to(torch.float32)`, of a float64 model."""
    return subject.then(subject.model.to(torch.float32))


@row(THEME)
def double(subject: Subject) -> Subject:
    """`model.double()`, of a float32 model."""
    single = subject.another(SEED, torch.float32)
    return single.then(single.model.double())


@row(THEME)
def to_empty_reset(subject: Subject) -> Subject:
    """`model.to("meta").to_empty(device="cpu")`, then every parameter is initialized anew."""
    model = subject.model.to("meta").to_empty(device="cpu")
    torch.manual_seed(SEED)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return subject.then(model)


@contextmanager
def _flag(setter: Callable[[bool], None]) -> Generator[None]:
    setter(True)
    try:
        yield
    finally:
        setter(False)


@row(THEME)
def overwrite_flag_to(subject: Subject) -> Subject:
    """`model.to(torch.float64)` under `torch.__future__.set_overwrite_module_params_on_conversion(True)`."""
    single = subject.another(SEED, torch.float32)
    with _flag(torch.__future__.set_overwrite_module_params_on_conversion):
        return single.then(single.model.to(torch.float64))


@row(THEME)
def swap_flag_to(subject: Subject) -> Subject:
    """`model.to(torch.float64)` under `torch.__future__.set_swap_module_params_on_conversion(True)`."""
    single = subject.another(SEED, torch.float32)
    with _flag(torch.__future__.set_swap_module_params_on_conversion):
        return single.then(single.model.to(torch.float64))
