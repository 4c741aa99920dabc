"""What may be handed to a layer, when it is made and when it is called, in the words of the one template.

Owns: sizes, choices, dtypes, weights and inputs that several layers take. Must not know any layer.
Torch computes first, and is asked for a reason only where it could not: an input that fits costs nothing.
Read next: `linear.py`.
"""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from tied.errors import AddressError, DeviceError, DtypeError, KindError, ShapeError, during, nearest, short

REAL = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


# -- when a layer is made -----------------------------------------------------------------------------


def is_size(size: object) -> TypeGuard[int]:
    """Tell whether something is a positive integer; `True` is none."""
    return type(size) is int and size > 0


def check_size(name: str, size: object, problem: str = "") -> int:
    """Return a size that is a positive integer.

    Raises:
        ShapeError: it is not.
    """
    if not is_size(size):
        raise ShapeError(
            problem or f"'{name}' is not a size.",
            found=short(f"{name}={size!r}"),
            expected="a positive integer",
            fix=f"{name}=64",
        )
    return size


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> str:
    """Return a value that is one of several words.

    Raises:
        AddressError: it is none of them.
    """
    if not isinstance(value, str) or value not in choices:
        near = nearest(value, choices) if isinstance(value, str) else ""
        raise AddressError(
            f"'{name}' has no such choice.",
            found=short(f"{name}={value!r}"),
            expected=" or ".join(repr(choice) for choice in choices),
            fix=f"did you mean {near}?" if near else f"{name}={choices[0]!r}",
        )
    return value


def check_dtype(dtype: torch.dtype | None) -> None:
    """Refuse dtypes in which a linear layer cannot be trained.

    Raises:
        DtypeError: `dtype` is complex, or holds integers, or is too narrow to compute with.
    """
    if (dtype or torch.get_default_dtype()) not in REAL:
        raise DtypeError(
            "The layer computes with real floating point numbers.",
            found=f"dtype={dtype}",
            expected=", ".join(str(each) for each in REAL),
            fix="dtype=torch.float32",
        )


def check_trainable(weight: Tensor) -> Tensor:
    """Return the weight, if a layer can compute with it and train it.

    Raises:
        KindError: it has no shape yet.
        DtypeError: it holds integers.
    """
    if is_lazy(weight):
        raise KindError(
            "The weight has no shape yet.",
            found="the parameter of a lazy module",
            expected="an initialized one",
            fix="run one forward through its module first",
        )
    if not (weight.is_floating_point() or weight.is_complex()):
        raise DtypeError(
            "The weight holds no floating-point numbers, so it cannot be trained.",
            found=str(weight.dtype),
            expected="a floating-point dtype",
            fix="convert it first: weight.float()",
        )
    return weight


# -- when it is called --------------------------------------------------------------------------------


def check_device(layer: nn.Module, input: Any, weight: Tensor) -> None:
    """Refuse an input on another device: torch multiplies by a matrix on meta, and returns what memory held.

    Raises:
        DeviceError: it is on another one.
        KindError: it is no tensor.
    """
    if getattr(input, "device", None) != weight.device:
        explain_bad_input(layer, input, weight, 0)


def explain_bad_input(layer: nn.Module, input: object, weight: Tensor, size: int, axis: int = -1) -> None:
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
        if not isinstance(input, Tensor):
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
