"""Sharded sources: what a target reads when its source lies in another FSDP2 group.

Owns: the way from a sharded `DTensor` to the plain tensor that the target computes with, and the gradient's way
back. Loaded by `binding/link.py` when it meets a `DTensor`, and never before.

FSDP2 keeps the parameters of a group sharded outside of the group's own forward. A target in another group then
reads a shard where it needs the whole. Gathering it is not enough: each process has the gradient of its own part of
the batch, and FSDP2 averages over processes. So the gathered tensor declares its gradient as a partial average,
which the backward pass reduces and scatters to the shards, where it is added to the source's own.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Partial


def whole(tensor: Tensor, target: nn.Module | None, home: nn.Module | None) -> Tensor:
    """Return what `target` computes with: `tensor`, gathered if it is sharded and the target is not.

    Law: a step of training equals that of one process with the whole batch (float64: 1e-12; measured 1e-8 and
    better). A partial sum instead of a partial average would be wrong by the number of processes.

    Args:
        tensor: A source, as its owner holds it now.
        target: The module that reads it; None where it is gone.
        home: The innermost module that holds both; None where it is not known.
    """
    if not isinstance(tensor, DTensor) or target is None or _computes_with_shards(target, home):
        return tensor
    return tensor.full_tensor(grad_placements=[Partial("avg")] * tensor.device_mesh.ndim)


def _computes_with_shards(target: nn.Module, home: nn.Module | None) -> bool:
    """Tell whether the target's own tensors are sharded now, as under tensor parallelism."""
    own = [p for p in (*target._parameters.values(), *target._buffers.values()) if p is not None]
    if own:
        return all(isinstance(tensor, DTensor) for tensor in own)
    return not any(isinstance(module, FSDPModule) for module in (home or target).modules())
