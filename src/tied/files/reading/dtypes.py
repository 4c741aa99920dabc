"""The dtypes of safetensors: what a header calls them, how wide they are, what torch calls them.

Owns: the table. Must not open files. Read next: `safetensors_header.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

BITS = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
"""Bits per element, by the name that a header uses."""

IN_TORCH = {
    "BOOL": "bool",
    "F4": "float4_e2m1fn_x2",
    "U8": "uint8",
    "I8": "int8",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "C64": "complex64",
    "F64": "float64",
    "I64": "int64",
    "U64": "uint64",
}
"""The name in torch, where torch has the dtype; some of them only in newer versions."""

FROM_TORCH = {name: dtype for dtype, name in IN_TORCH.items()}


def dtype_name(dtype: torch.dtype) -> str | None:
    """Return what a header calls a torch dtype; `None` where safetensors has no such dtype.

    Example:
        >>> import torch
        >>> dtype_name(torch.bfloat16), dtype_name(torch.complex128)
        ('BF16', None)
    """
    return FROM_TORCH.get(str(dtype).removeprefix("torch."))


def torch_dtype(name: str) -> torch.dtype | None:
    """Return the torch dtype that a header's name stands for; `None` where this torch has none.

    `F4` stands for two values of four bits per element of torch: the last size of the shape is halved.

    Example:
        >>> torch_dtype("BF16"), torch_dtype("F6_E2M3")
        (torch.bfloat16, None)
    """
    import torch

    return getattr(torch, IN_TORCH.get(name, ""), None)
