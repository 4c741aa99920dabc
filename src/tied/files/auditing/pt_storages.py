"""The memory of a `.pt`: what shares it, what wastes it, and what is no weight at all.

Owns: the storages. Must not compare values. Read next: `inspection.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tied.algebra import Expression
from tied.files.auditing.shared_memory import views
from tied.files.reading.checkpoint import Checkpoint
from tied.files.reading.named_tensors import inert_in
from tied.files.reading.pt_file import PickledTensor
from tied.memory.overlap import Piece, pieces


@dataclass(frozen=True)
class Storages:
    """What is known of the memory of a file that `torch.save` wrote.

    Attributes:
        shared: The names that are views of others, each with the expression over the other.
        wasted: The bytes of a storage that no tensor shows, by the first name that lies in it.
        training: The names of what belongs to the training: the states of optimizers.
        unseen: The names whose values cannot be compared: sparse, quantized, expanded, without values.
        others: What the file holds beside tensors, by name.
        inert: The names of objects that were not made, each with its kind.
    """

    shared: Mapping[str, Expression]
    wasted: Mapping[str, int]
    training: frozenset[str]
    unseen: frozenset[str]
    others: Mapping[str, Any]
    inert: Mapping[str, str]


def look_at(checkpoint: Checkpoint) -> Storages:
    """Look at the storages of a checkpoint of which at least one file is a `.pt`."""
    found = {name: stored.value for name, stored in checkpoint.tensors.items() if isinstance(stored, PickledTensor)}
    states = tuple(f"{name}." if name else "" for one in checkpoint.files for name in one.training)
    training = frozenset(name for name in checkpoint.tensors if name.startswith(states)) if states else frozenset[str]()
    beside = {name: value for one in checkpoint.files for name, value in one.beside.items()}
    others = {name: value for name, value in beside.items() if not name.startswith(states)}
    seen = {name: tensor for name, tensor in found.items() if name not in training and checkpoint.tensors[name].plain}
    return Storages(
        shared=views(seen),
        wasted=dict(_wasted(found)),
        training=training,
        unseen=frozenset(name for name, stored in checkpoint.tensors.items() if not stored.plain) - training,
        others=others,
        inert=dict(inert_in(others)),
    )


def _wasted(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, int]]:
    """Yield the first name in each storage that is larger than what its tensors show, and by how much."""
    by_storage: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        if tensor.layout is torch.strided and not tensor.is_meta:
            by_storage.setdefault(tensor.untyped_storage().data_ptr(), []).append(name)
    for names in by_storage.values():
        size = tensors[names[0]].untyped_storage().nbytes()
        wasted = size - _covered([piece for name in names for piece in pieces(tensors[name])])
        if wasted > 0:
            yield names[0], wasted


def _covered(found: list[Piece]) -> int:
    """Return how many bytes pieces take together; those with gaps are taken to lie apart from all others."""
    covered = sum(math.prod(piece.shape) * piece.itemsize for piece in found if not piece.is_dense)
    reach = 0
    for piece in sorted(piece for piece in found if piece.is_dense):
        covered += max(piece.stop - max(piece.start, reach), 0)
        reach = max(reach, piece.stop)
    return covered
