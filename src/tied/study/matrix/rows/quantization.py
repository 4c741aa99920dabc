"""Rows on quantization: the weights become integers, and the outputs stay near."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tied.study.matrix.law import Check, batch, near, relative
from tied.study.matrix.row import row
from tied.study.matrix.subject import SEED, Subject

THEME = "quantization"
EIGHT_BITS = 0.05
"""Relative to the largest output."""


@torch.no_grad()
def _compared(subject: Subject, quantized: nn.Module, expected: torch.Tensor) -> list[Check]:
    found = relative(quantized(batch(subject, 1)[0]), expected)
    return [near("quantized", found, EIGHT_BITS, "the output (relative)")]


@row(THEME)
@torch.no_grad()
def quantize_dynamic(subject: Subject) -> list[Check]:
    """`torch.ao.quantization.quantize_dynamic(model, {nn.Linear})`: the output stays within 5 %."""
    from torch.ao import quantization

    single = subject.another(SEED, torch.float32)
    expected = single(batch(single, 1)[0])
    quantize: Any = getattr(quantization, "quantize_dynamic")  # noqa: B009  (deprecated, and here because it is used)
    return _compared(single, quantize(single.model, {nn.Linear}, dtype=torch.qint8), expected)


@row(THEME, needs="torchao")
@torch.no_grad()
def torchao_int8wo(subject: Subject) -> list[Check]:
    """`torchao.quantization.quantize_(model, Int8WeightOnlyConfig())`: the output stays within 5 %."""
    from torchao.quantization import (  # pyright: ignore[reportMissingImports]
        Int8WeightOnlyConfig,
        quantize_,
    )

    single = subject.another(SEED, torch.float32)
    expected = single(batch(single, 1)[0])
    quantize_(single.model, Int8WeightOnlyConfig())
    return _compared(single, single.model, expected)
