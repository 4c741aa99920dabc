"""The memory of a `.pt`: what shares it, what wastes it, and what is no weight at all.

Owns: the storages, and what an optimizer's state looks like. Must not compare values. Read next: `inspection.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from tied.algebra import Expression
from tied.files.auditing.shared_memory import views
from tied.files.reading.checkpoint import Checkpoint
from tied.files.reading.pt_file import PickledTensor, tensors_in
from tied.memory.overlap import Piece, pieces


@dataclass(frozen=True)
class Storages:
    """What is known of the memory of a file that `torch.save` wrote.

    Attributes:
        shared: The names that are views of others, each with the expression over the other.
        wasted: The bytes of a storage that no tensor shows, by the first name that lies in it.
        optimizer: The names of an optimizer's state.
        unseen: The names whose values cannot be compared: sparse, quantized, expanded, without values.
        others: What the file holds beside tensors, by its path.
    """

    shared: Mapping[str, Expression]
    wasted: Mapping[str, int]
    optimizer: frozenset[str]
    unseen: frozenset[str]
    others: tuple[str, ...]


def look_at(checkpoint: Checkpoint) -> Storages:
    """Look at the storages of a checkpoint of which at least one file is a `.pt`."""
    found = {name: stored.value for name, stored in checkpoint.tensors.items() if isinstance(stored, PickledTensor)}
    roots = [one.loaded for one in checkpoint.files if one.header is None]
    states = tuple(f"{path}." if path else "" for root in roots for path in _optimizers(root, ""))
    optimizer = frozenset(name for name in checkpoint.tensors if states and name.startswith(states))
    seen = {name: tensor for name, tensor in found.items() if name not in optimizer and checkpoint.tensors[name].plain}
    return Storages(
        shared=views(seen),
        wasted=dict(_wasted(found)),
        optimizer=optimizer,
        unseen=frozenset(name for name, stored in checkpoint.tensors.items() if not stored.plain) - optimizer,
        others=tuple(key for root in roots for key in _without_tensors(root)),
    )


def _optimizers(value: Any, path: str) -> Iterator[str]:
    """Yield the paths of the states of optimizers: they have the two keys of torch's, or a name that says so."""
    inside = _inside(value)
    is_torchs = isinstance(inside.get("state"), dict) and isinstance(inside.get("param_groups"), list)
    if is_torchs or (inside and _NAMED.fullmatch(path.rpartition(".")[2])):
        yield path
        return
    for key, inner in inside.items():
        yield from _optimizers(inner, f"{path}.{key}" if path else str(key))


_NAMED = re.compile(r"optim(izer)?s?(_states?)?(_dicts?)?", re.IGNORECASE)


def _inside(value: Any) -> dict[Any, Any]:
    if isinstance(value, dict):
        return cast(dict[Any, Any], value)
    return dict(enumerate(cast(list[Any], value))) if isinstance(value, list | tuple) else {}


def _without_tensors(root: Any) -> list[str]:
    inside = cast(dict[Any, Any], root) if isinstance(root, dict) else {}
    return [str(key) for key, value in inside.items() if not any(True for _ in tensors_in(value, Path()))]


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
