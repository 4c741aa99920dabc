"""Inputs that do not fit a layer, in the words of the one template.

Owns: the words. Torch computes first, and is asked for a reason only where it could not: an input that fits costs
nothing. Must not know any layer. Read next: `linear.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tied.errors import DeviceError, DtypeError, KindError, ShapeError, during


def check_device(layer: nn.Module, input: Any, weight: torch.Tensor) -> None:
    """Refuse an input on another device: torch multiplies by a matrix on meta, and returns what memory held.

    Raises:
        DeviceError: it is on another one.
        KindError: it is no tensor.
    """
    try:
        fits = input.device == weight.device
    except AttributeError:
        fits = False
    if not fits:
        explain_bad_input(layer, input, weight, 0)


def explain_bad_input(layer: nn.Module, input: object, weight: torch.Tensor, size: int, axis: int = -1) -> None:
    """Say in the template's words why a layer cannot compute, if that is because of the input.

    Args:
        layer: What was called.
        input: With what.
        weight: What the layer computes with.
        size: Of the axis that is summed over.
        axis: That axis; there may be any number of axes before it, and none are needed.

    Raises:
        KindError: the input is no tensor.
        DeviceError: it lives on another device than the weight.
        ShapeError: its axis has another size.
        DtypeError: it has another dtype than the weight.
    """
    with during(f"{type(layer).__name__}.forward(input)"):
        if not isinstance(input, torch.Tensor):
            raise KindError(
                "The input is no tensor.",
                found=f"a {type(input).__name__}",
                expected="a tensor",
                fix="torch.as_tensor(input, dtype=torch.float32)",
            ) from None
        if input.device != weight.device:
            raise DeviceError(
                "Input and weight live on different devices.",
                found=f"an input on {input.device}",
                expected=f"{weight.device}, where the weight is",
                fix=f"input.to('{weight.device}'), or move the model",
            ) from None
        if input.dim() < -axis or input.shape[axis] != size:
            raise ShapeError(
                f"The input does not have as many {'features' if axis == -1 else 'channels'} as the layer.",
                found=f"an input of shape {tuple(input.shape)}",
                expected=f"shape (..., {', '.join([str(size), *['*'] * (-1 - axis)])})",
                fix="move the axis to its place, or build the layer for this size",
            ) from None
        if input.dtype != weight.dtype:
            raise DtypeError(
                "Input and layer have different dtypes.",
                found=f"an input of {input.dtype}",
                expected=f"{weight.dtype}, as the weight",
                fix=f"input.to({weight.dtype}), layer.to(...), or torch.autocast",
            ) from None


def explain_words(words: object) -> None:
    """Say in the template's words why no rows could be looked up, if that is because of the dtype.

    Raises:
        DtypeError: these are no integers, or no tensor.
    """
    if not isinstance(words, torch.Tensor) or words.dtype not in (torch.int64, torch.int32):
        found = f"a tensor of {words.dtype}" if isinstance(words, torch.Tensor) else f"a {type(words).__name__}"
        expected, fix = "a tensor of int64 or int32", "torch.as_tensor(input, dtype=torch.int64)"
        with during("TiedEmbedding.forward(input)"):
            raise DtypeError("The input holds no words.", found=found, expected=expected, fix=fix) from None
