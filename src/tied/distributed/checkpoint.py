"""Distributed checkpoints: a tensor that stands under several names is written once, and found under each.

Owns: the planner and the writer for `torch.distributed.checkpoint`. Must not know modules: what is tied by `tied`
has one name in a state dict already. Read next: `sharding.py`.

torch writes a plainly shared Parameter once for each of its names. Here all names but the first are left out of the
plan, and entered in the metadata with the place of the first: so every reader finds all of them, torch's own included.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Hashable
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan
from torch.distributed.checkpoint.state_dict_saver import save as save_by_torch
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.tensor import DTensor
from torch.nn import Parameter

from tied.memory.overlap import overlapping


def save(state_dict: dict[str, Any], folder: str | os.PathLike[str]) -> Metadata:
    """Save a state dict as `torch.distributed.checkpoint.save` does, and each tensor once.

    Law: `torch.distributed.checkpoint.load` reads it as it reads what torch wrote, under every name.

    All processes have to call. Tensors are the same if they are the same memory with the same sizes. A view of another
    shape (a transposed alias, a slice) is written as a tensor of its own, with a warning: that format knows no
    transforms. What is tied by `tied` has no second name in a state dict, and is written once.

    Args:
        state_dict: Of a model, or nested, with an optimizer's: as torch's.
        folder: Where the checkpoint goes.

    Returns:
        What torch returns: the metadata of the checkpoint.

    Example:
        >>> import tempfile, torch
        >>> weight = torch.randn(100, 100)
        >>> metadata = save({"embed.weight": weight, "head.weight": weight}, tempfile.mkdtemp())
        >>> sorted(metadata.state_dict_metadata), len({place.offset for place in metadata.storage_data.values()})
        (['embed.weight', 'head.weight'], 1)
    """
    planner = OncePlanner()
    writer = OnceWriter(folder, planner)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is ")  # one process is no news
        return save_by_torch(state_dict, storage_writer=writer, planner=planner)


class OncePlanner(DefaultSavePlanner):
    """Torch's planner, but for tensors that stand under an earlier name too.

    Attributes:
        aliases: Each name that is not written, with the name that is.
    """

    aliases: dict[str, str]

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        """Leave the other names out of the plans of all processes, and enter them in the metadata."""
        self.aliases = _aliases(self.state_dict)
        _warn_of_views({name: value for name, value in self.state_dict.items() if name not in self.aliases})
        plans = [
            replace(plan, items=[item for item in plan.items if item.index.fqn not in self.aliases])
            for plan in all_plans
        ]
        planned, metadata = super().create_global_plan(plans)
        for alias, kept in self.aliases.items():
            metadata.state_dict_metadata[alias] = metadata.state_dict_metadata[kept]
        return planned, metadata


class OnceWriter(FileSystemWriter):
    """Torch's writer of folders, which enters the places of the names that were not written."""

    def __init__(self, folder: str | os.PathLike[str], planner: OncePlanner) -> None:
        """Write to `folder` what `planner` plans."""
        super().__init__(folder)
        self.planner = planner

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write the metadata, with each place under all its names."""
        names: dict[str, list[str]] = {}
        for alias, kept in self.planner.aliases.items():
            names.setdefault(kept, []).append(alias)
        more = [
            replace(result, index=replace(result.index, fqn=alias))
            for part in results
            for result in part
            for alias in names.get(result.index.fqn, ())
        ]
        super().finish(metadata, [*results, more])


def _aliases(state_dict: dict[str, Any]) -> dict[str, str]:
    first: dict[Hashable, str] = {}
    aliases: dict[str, str] = {}
    for name, value in state_dict.items():
        if isinstance(value, Tensor) and (memory := _memory(value)):
            kept = first.setdefault(memory, name)
            if kept != name:
                aliases[name] = kept
    return aliases


def _warn_of_views(state_dict: dict[str, Any]) -> None:
    """Say which of these tensors are views of others, and so are written twice."""
    tensors = {name: value for name, value in state_dict.items() if type(value) in (Tensor, Parameter)}
    names = list(tensors)
    for group in overlapping(list(tensors.values())):
        shared = ", ".join(repr(names[place]) for place in group[:4]) + (" ..." if len(group) > 4 else "")
        warnings.warn(
            f"{shared} lie over one memory, but are not one tensor: each is written by itself, since no reader of "
            "distributed checkpoints knows transforms. Tied by tied.tie(model, target, source), they have one name in "
            "the state dict, and are written once.",
            stacklevel=2,
        )


def _memory(tensor: Tensor) -> Hashable:
    """Return what two tensors have in common if they are one; nothing where there are no elements."""
    layout: Hashable = None
    if isinstance(tensor, DTensor):
        layout = (tensor.device_mesh, tensor.placements, tensor.shape)
        tensor = tensor.to_local()
    if not tensor.numel() or tensor.is_meta:
        return None
    bits = tensor.dtype, tensor.is_conj(), tensor.is_neg()
    return tensor.data_ptr(), tensor.device, bits, tensor.shape, tensor.stride(), layout
