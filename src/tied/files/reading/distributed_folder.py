"""Folders that `torch.distributed.checkpoint` wrote: tensors in chunks, and a pickle that says where each lies.

Owns: reading them in one process, without that package, and without making any object that the pickle names. Must not
write: that is `tied.distributed`. Read next: `pt_file.py`, for what is in a chunk.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, cast

import torch
from torch import Tensor

from tied.errors import TieError, short
from tied.files.reading.checkpoint import Checkpoint
from tied.files.reading.dtypes import dtype_name
from tied.files.reading.inert import Inert
from tied.files.reading.pickle_codes import load
from tied.files.reading.pickle_machine import Machine
from tied.files.reading.pt_file import PickledTensor, made, unpickled
from tied.files.reading.rebuild import are_counts, dtype_of
from tied.files.reading.refusal import AGAIN, refuse, shown
from tied.files.reading.regular_file import open_regular
from tied.files.reading.stored import OneFile, Stored, Words

NAME = ".metadata"
METADATA = "torch.distributed.checkpoint.metadata.Metadata"
MOST_BYTES = 1 << 28


class Place(NamedTuple):
    """Where the bytes of a chunk lie, and where its elements go."""

    file: str
    begin: int
    length: int
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class ChunkedTensor(Stored):
    """A tensor whose chunks are read, and put together, each time it is asked for."""

    kind: torch.dtype
    places: tuple[Place, ...] = field(repr=False)

    def words(self) -> Words:
        """Return the elements as unsigned integers."""
        return PickledTensor.of(self.tensor(), self.file).words()

    def tensor(self) -> Tensor:
        """Return the tensor, in memory of its own.

        Raises:
            FileError: A chunk is broken, or they do not cover it.
        """
        whole = torch.empty(self.shape, dtype=self.kind)
        covered = torch.zeros(self.shape, dtype=torch.bool)
        for place in self.places:
            at = tuple(slice(offset, offset + size) for offset, size in zip(place.offsets, place.sizes, strict=True))
            whole[at] = self.chunk(place)
            covered[at] = True
        if not covered.all():
            _broken(self.file, f"chunks that leave {int((~covered).sum())} elements open")
        return whole

    def chunk(self, place: Place) -> Tensor:
        """Read one chunk."""
        path = self.file / place.file
        with open_regular(path) as stream:
            stream.seek(place.begin)
            content = bytearray(stream.read(place.length))
        found = made(unpickled(content, path), path)
        if found is None or (found.dtype, tuple(found.shape)) != (self.kind, place.sizes):
            _broken(path, f"at byte {place.begin} something else than {self.dtype} {place.sizes}")
        return found


def is_distributed(path: Path) -> bool:
    """Tell whether a folder holds a distributed checkpoint."""
    return path.is_dir() and (path / NAME).is_file()


def open_distributed(folder: Path) -> Checkpoint:
    """Open a distributed checkpoint; no tensor is read. What is no tensor in it is left out.

    Raises:
        FileError: It is broken, or its pickle names what no checkpoint needs.
        OSError: It cannot be opened.
    """
    stored = {file.name: file.stat().st_size for file in folder.iterdir() if file.is_file()}
    found = _metadata(folder, sum(stored.values()))
    try:
        tensors = dict(_tensors(found, folder, stored))
        tree = _tree(found["planner_data"] if isinstance(found.get("planner_data"), Mapping) else {})
    except TieError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        _broken(folder / NAME, f"something else: {short(ascii(str(error)))}")
    one = OneFile(folder, tensors, loaded=tree)
    return Checkpoint(folder, "sharded", tensors, None, (one,))


# -- what the pickle says ---------------------------------------------------------------------------


def _metadata(folder: Path, size: int) -> dict[str, Any]:
    path = folder / NAME
    with open_regular(path) as stream:
        raw = stream.read(MOST_BYTES + 1)
    found = load(Machine(raw, path, size=size))
    if not isinstance(found, Inert) or found.name != METADATA or not isinstance(found.state, dict):
        _broken(path, shown(found.kind if isinstance(found, Inert) else type(found).__name__))
    return cast(dict[str, Any], found.state)


def _tensors(found: Mapping[str, Any], folder: Path, stored: Mapping[str, int]) -> Any:
    """Yield the tensors by name."""
    places: dict[tuple[str, tuple[int, ...]], Any] = {}
    for index, info in found["storage_data"].items():
        if index.state.get("offset") is not None:
            places[index.state["fqn"], tuple(index.state["offset"])] = info.state
    for name, entry in found["state_dict_metadata"].items():
        if "chunks" not in (entry.state or ()):  # no tensor
            continue
        dtype, shape = dtype_of(entry.state["properties"].state[0], folder / NAME), tuple(entry.state["size"])
        chunks = [_place(places, name, chunk.state, folder, stored) for chunk in entry.state["chunks"]]
        nbytes = math.prod(shape) * dtype.itemsize
        most = min(sum(one.length for one in chunks), sum(stored.values()))
        if any(type(size) is not int or size < 0 for size in shape) or nbytes > most:
            _broken(folder / NAME, f"{shown(name)} of shape {short(str(shape))}, more than what is stored of it")
        known = dtype_name(dtype) or str(dtype).removeprefix("torch.")
        yield name, ChunkedTensor(folder, known, shape, nbytes, True, dtype, tuple(chunks))


def _place(
    places: Mapping[Any, Any], name: str, chunk: Mapping[str, Any], folder: Path, stored: Mapping[str, int]
) -> Place:
    offsets, sizes = tuple(chunk["offsets"]), tuple(chunk["sizes"])
    info = places[name, offsets]
    file = info["relative_path"]
    if info.get("transform_descriptors"):
        fix = "torch.distributed.checkpoint.load, which knows how to undo it"
        found = shown(str(info["transform_descriptors"]))
        refuse(folder, "Its chunks are packed.", found=found, expected="tensors as they are", fix=fix)
    if not re.fullmatch(r"[^/\\\0:]+", file) or file in (".", "..") or (folder / file).is_symlink():
        expected = "files of the same folder"
        refuse(folder, "It leads out of its folder.", found=shown(file), expected=expected, fix="do not use it")
    begin, length = info["offset"], info["length"]
    if not are_counts((begin, length)) or begin + length > stored.get(file, begin + length):
        _broken(folder / NAME, f"{short(str(length))} bytes at {short(str(begin))} of {shown(file)}")
    return Place(file, begin, length, offsets, sizes)


def _tree(paths: Mapping[str, Any]) -> dict[Any, Any]:
    """Return the nested dicts that were saved, without what they held."""
    tree: dict[Any, Any] = {}
    for path in paths.values():
        here = tree
        for key in path[:-1]:
            here = here.setdefault(key, {})
    return tree


def _broken(path: Path, found: str) -> NoReturn:
    expected = "a checkpoint of torch.distributed.checkpoint"
    refuse(path, "It is broken.", found=found, expected=expected, fix=AGAIN)
