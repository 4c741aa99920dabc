"""Sharded tensors: gathered where a whole one is needed, spread where a part is.

Owns: the way between a `DTensor` and a plain tensor, for targets that read one and for files. Must not import
`torch.distributed` before it has met a `DTensor`. Read next: `binding/link.py`, `files/models/payload.py`.

FSDP2 keeps the parameters of a group sharded outside of the group's own forward. A target in another group then
reads a shard where it needs the whole. Gathering it is not enough: each process has the gradient of its own part of
the batch, and FSDP2 averages over processes. So the gathered tensor declares its gradient as a partial average,
which the backward pass reduces and scatters to the shards, where it is added to the source's own.
"""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor, distributed, nn

Path = tuple[str, ...]


def is_sharded(tensor: Any) -> bool:
    """Tell whether a tensor is the part that this process has of one."""
    return type(tensor).__name__ == "DTensor"


def gathered_for(target: nn.Module | None, tensor: Any, home: nn.Module | None) -> Tensor:
    """Return what `target` computes with: a sharded `tensor`, gathered if the target is not sharded itself.

    Law: a step of training equals that of one process with the whole batch (float64: 1e-12; measured 1e-8 and
    better). A partial sum instead of a partial average would be wrong by the number of processes.

    Args:
        target: The module that reads it; None where it is gone.
        tensor: A source, as its owner holds it now: a `DTensor`.
        home: The innermost module that holds both; None where it is not known.
    """
    from torch.distributed.tensor import Partial

    if target is None or _computes_with_shards(target, home):
        return tensor
    return tensor.full_tensor(grad_placements=[Partial("avg")] * tensor.device_mesh.ndim)


def _computes_with_shards(target: nn.Module, home: nn.Module | None) -> bool:
    """Tell whether the target's own tensors are sharded now, as under tensor parallelism."""
    from torch.distributed.fsdp import FSDPModule

    own = [p for p in (*target._parameters.values(), *target._buffers.values()) if p is not None]
    if own:
        return all(map(is_sharded, own))
    return not any(isinstance(module, FSDPModule) for module in (home or target).modules())


def gathered(tensor: Any) -> Tensor:
    """Return a tensor whole, the same on every process; where it is sharded, all of them have to call."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def spread(tensor: Tensor, like: Any) -> Tensor:
    """Return the part of a tensor that this process holds, sharded as `like` is; all processes have to call.

    The first process sends what it has read, so that all hold parts of one value.
    """
    if not is_sharded(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)


def is_first_process() -> bool:
    """Tell whether this process is the one of all that writes."""
    return not distributed.is_initialized() or distributed.get_rank() == 0


def is_managed(module: nn.Module | None) -> bool:
    """Tell whether FSDP has marked a module; FSDP1 does so just before it flattens the Parameters, FSDP2 afterwards."""
    return module is not None and "_is_fsdp_managed_module" in module.__dict__


def are_apart(home: nn.Module | None, place: Path, source: Path) -> bool:
    """Tell whether FSDP2 shards two ends of a tie apart, or is about to, so that they cannot be one Parameter.

    Args:
        home: The innermost module that holds both ends.
        place: The address of the target from there.
        source: The address of the source's module from there.
    """
    contract = sys.modules.get("torch.distributed._composable.contract")
    if contract is None or home is None:
        return False
    return _group(home, place[:-1], contract.STATE_KEY) is not _group(home, source, contract.STATE_KEY)


def _group(module: nn.Module, path: Path, key: Any) -> object:
    """Return the state of the innermost group of FSDP2 that a module belongs to, as seen from above it."""
    found: object = None
    step: nn.Module | None = module
    for segment in (None, *path):
        step = step if segment is None or step is None else step.__dict__.get("_modules", {}).get(segment)
        states = step.__dict__.get(key) if step is not None else None
        found = next(iter(states.values())) if states else found
    return found
