"""What may be handed to a structured layer, checked, in the words of the one template.

Owns: sizes, dtypes, names of algorithms, inputs, and dtypes to compute in. Must not know any layer. Read next:
`structured_linear.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tied.errors import AddressError, DtypeError, ShapeError, nearest, short
from tied.nn.input_errors import explain_bad_input

if TYPE_CHECKING:
    from tied.nn.structured.structured_linear import StructuredLinear

REAL = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def check_size(name: str, size: object) -> int:
    """Return a size that is a positive integer.

    Raises:
        ShapeError: it is not.
    """
    if type(size) is not int or size < 1:
        raise ShapeError(
            f"'{name}' is not a size.",
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


def check_input(layer: StructuredLinear, input: Any, numbers: Tensor) -> None:
    """Refuse an input that does not fit, before an algorithm broadcasts or promotes it into something else.

    Raises:
        ShapeError: the last axis is not `layer.in_features` long.
        DtypeError: the input has another dtype than the parameters, outside autocast.
        DeviceError: the input lives on another device.
        KindError: it is no tensor.
    """
    tensor = isinstance(input, Tensor) and input.dim()
    fits = tensor and input.shape[-1] == layer.in_features and input.device == numbers.device
    if not (fits and (input.dtype == numbers.dtype or _is_cast(input, numbers))):
        explain_bad_input(layer, input, numbers, layer.in_features)


def _is_cast(input: Tensor, numbers: Tensor) -> bool:
    """Tell whether autocast brings the two to one dtype, as it does for `F.linear`: never from or to float64."""
    narrow = all(each.is_floating_point() and each.dtype != torch.float64 for each in (input, numbers))
    return narrow and autocast_dtype(input) is not None


def autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """Return the dtype in which autocast computes linear layers where `tensor` lives; None where it is off."""
    kind = tensor.device.type
    on = kind != "meta" and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if on else None


def wide(values: Tensor) -> Tensor:
    """Return values in a dtype that Fourier transforms know, and in which many of them can be added up."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def lowered(output: Tensor) -> Tensor:
    """Give an output the dtype that `F.linear` would give it: autocast's, unless it is float64."""
    dtype = autocast_dtype(output)
    return output if dtype is None or output.dtype == torch.float64 else output.to(dtype)
