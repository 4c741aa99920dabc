"""Entries of a vector picked by an index, and the layer whose matrix is that.

Owns: `gather`, the fastest pair of torch's kernels in both directions, and `GatheredLinear`. Must not know how an
index comes about: `hashed.py`, `permutation_equivariant.py`, `codebook.py`.

`theta[index]` is slow, and its gradient (`index_put_`) slower. `index_select` picks 3 to 5 times as fast, and
`scatter_add_` adds up 2 to 3 times as fast, but autograd never pairs them: `index_select` differentiates into
`index_add_`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tied.errors import DeviceError
from tied.nn.accumulate import is_transformed
from tied.nn.mixed_precision import wide
from tied.nn.structured.constant_buffers import ConstantBuffers


def gather(theta: Tensor, index: Tensor) -> Tensor:
    """Return `theta[index]`, differentiable any number of times.

    Law: `gather(theta, index) == theta[index]`, exact; the gradient adds up in float32 at least.

    Shapes:
        theta: `(m,)`; index: any shape, int64 in `[0, m)`; result: the shape of `index`.

    Example:
        >>> theta = torch.tensor([0.5, 2.0], requires_grad=True)
        >>> gather(theta, torch.tensor([[0, 1], [1, 1]])).sum().backward()
        >>> theta.grad
        tensor([1., 3.])
    """
    if index.device != theta.device:  # torch reads memory that nobody wrote where the index is on meta
        raise DeviceError(
            "Values and index live on different devices.",
            found=f"values on {theta.device}, an index on {index.device}",
            expected="one device",
            fix="move the whole layer: layer.to(device)",
        )
    if is_transformed():  # which may pair the kernels itself, or want to see each
        return _pick(wide(theta), index).to(theta.dtype)
    picked: Tensor = _Gather.apply(theta, index)  # pyright: ignore[reportAssignmentType]
    return picked


def _pick(theta: Tensor, index: Tensor) -> Tensor:
    return theta.index_select(0, index.reshape(-1)).reshape(index.shape)


class _Gather(torch.autograd.Function):
    """`index_select` forward, `scatter_add` backward."""

    @staticmethod
    def forward(ctx: Any, theta: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.length = theta.shape[0]
        return _pick(theta, index)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, None]:
        (cotangent,) = cotangents
        (index,) = ctx.saved_tensors
        parts = wide(cotangent).reshape(-1)
        sums = parts.new_zeros(ctx.length).scatter_add(0, index.reshape(-1), parts)
        return sums.to(cotangent.dtype), None


class GatheredLinear(ConstantBuffers):
    """A linear layer whose matrix is `theta[index]`, for an index that follows from its arguments."""

    theta: nn.Parameter

    def build(self) -> Tensor:
        """Pick the entries."""
        return gather(self.theta, self.settled("index"))
