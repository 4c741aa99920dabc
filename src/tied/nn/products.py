"""Products of matrices on the CPU, by the faster of the two libraries that come with torch.

Owns: which library multiplies. Must not differentiate: this is for code that makes gradients itself.
Read next: `cross_entropy.py`; `accumulate.py`, whose `fast_linear` is the differentiable one.

`torch.mm` multiplies float32 by MKL. On processors of AMD, MKL leaves half of the 512-bit units idle; oneDNN, which
torch has for its compiler, does not, and takes half the time once there is enough to do. It has no public name, so it
is looked up once, and done without where it is missing. The choice follows from the processor and the sizes, never
from a clock: the same program rounds the same way each time.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

LIBRARY: str = "auto"  # or "mm" or "onednn", to force either

# What `benchmarks/products.py` measures
FEWEST_MULTIPLICATIONS = 2**21  # below, oneDNN's preparations cost more than they save
FEWEST_ROWS = 8  # of either side and between them
FEWEST_TO_ADD = 64  # between them: `mm` adds on the way, oneDNN's product has to be added
ADDED_AT_ONCE = 2**19  # numbers, so that a product is still in the cache when it is added

_ONEDNN: Any = getattr(getattr(torch.ops, "mkldnn", None), "_linear_pointwise", None)


def product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `left @ right + bias`.

    Law: as `torch.mm`, up to the order in which products are added.

    Shapes:
        left: `(m, k)`; right: `(k, n)`; bias: `(n,)`; result: `(m, n)`. Any strides.

    Example:
        >>> product(torch.ones(2, 3), torch.ones(3, 4), bias=torch.ones(4)).unique()
        tensor([4.])
    """
    if uses_onednn(left, right) and not _needs_graph(left, right, bias):
        return _ONEDNN(left, right.t(), bias, "none", [], "")  # type: ignore[no-any-return]
    return left @ right if bias is None else torch.addmm(bias, left, right)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return `F.linear(x, weight, bias)`, for `x` of shape `(..., in)`."""
    if not uses_onednn(x, weight.t()):
        return functional.linear(x, weight, bias)
    return product(x.reshape(-1, x.shape[-1]), weight.t(), bias).reshape(*x.shape[:-1], len(weight))


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add `left @ right` to `total`, of shape `(m, n)`; its dtype may be a wider one."""
    if total.dtype is left.dtype and not (left.shape[1] >= FEWEST_TO_ADD and uses_onednn(left, right)):
        total.addmm_(left, right)
        return
    rows = max(FEWEST_ROWS, ADDED_AT_ONCE // total.shape[1])
    for part, some in zip(total.split(rows), left.split(rows), strict=True):
        part += product(some, right)


def uses_onednn(left: Tensor, right: Tensor) -> bool:
    """Tell whether oneDNN multiplies `left`, of shape `(..., k)`, by `right`: it can, it may, and it pays."""
    fits = left.dtype is right.dtype is torch.float32 and left.device.type == right.device.type == "cpu"
    if not fits or LIBRARY == "mm" or not _has_onednn() or not left.numel() or not right.numel():
        return False
    return LIBRARY == "onednn" or (_pays(left.numel(), *right.shape) and mkl_is_slow_here())


def _has_onednn() -> bool:
    return _ONEDNN is not None and torch.backends.mkldnn.is_available() and torch._C._get_mkldnn_enabled()


def _needs_graph(*tensors: Tensor | None) -> bool:
    """Tell whether autograd watches; it knows no derivative of oneDNN's product."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _pays(numbers: int, between: int, columns: int) -> bool:
    fewest = min(numbers // between, between, columns)
    return fewest >= FEWEST_ROWS and numbers * columns >= FEWEST_MULTIPLICATIONS


@cache
def mkl_is_slow_here() -> bool:
    """Tell whether `mm` is MKL on a processor of AMD that has 512-bit units."""
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return wide and torch.backends.mkl.is_available() and _maker() == "AuthenticAMD"


def _maker() -> str | None:
    """Return the processor's maker as Linux tells it; None on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((line.split(":")[1].strip() for line in lines if line.startswith("vendor_id")), None)
