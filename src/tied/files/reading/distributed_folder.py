"""Folders that `torch.distributed.checkpoint` wrote: tensors in chunks, and a pickle that says where each lies.

Owns: reading them in one process, without that package, and without making any object that the pickle names. Must not
write: that is `tied.distributed`. Read next: `pt_file.py`, for what is in a chunk.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from tied.errors import TieError, short
from tied.files.reading.checkpoint import Checkpoint
from tied.files.reading.dtypes import dtype_name
from tied.files.reading.pickle_limits import check_pickles
from tied.files.reading.pt_file import PickledTensor, unpickled
from tied.files.reading.refusal import AGAIN, refuse, shown
from tied.files.reading.regular_file import open_regular
from tied.files.reading.stored import OneFile, Stored, Words
from tied.files.reading.zip_archive import allowance

NAME = ".metadata"
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
            content = io.BytesIO(stream.read(place.length))
        found = unpickled(content, path)
        if not isinstance(found, Tensor) or (found.dtype, tuple(found.shape)) != (self.kind, place.sizes):
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
    found = _metadata(folder)
    try:
        tensors = dict(_tensors(found, folder))
        tree = _tree(found["planner_data"] if isinstance(found.get("planner_data"), Mapping) else {})
    except TieError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        _broken(folder / NAME, f"something else: {short(ascii(str(error)))}")
    one = OneFile(folder, tensors, loaded=tree)
    return Checkpoint(folder, "sharded", tensors, None, (one,))


# -- what the pickle says ---------------------------------------------------------------------------


class _Record:
    """In the place of every object: what was to be known of it."""

    state: Any = MappingProxyType[str, Any]({})

    def __init__(self, *parts: Any) -> None:
        self.parts = parts

    def __setstate__(self, state: Any) -> None:
        self.state = state


_KNOWN = re.compile(
    r"torch\.distributed\.checkpoint\.metadata\.\w+"
    r"|torch\.distributed\.checkpoint\.filesystem\._StorageInfo"
    r"|torch\.serialization\._get_layout"
    r"|pathlib(\._local)?\.(Pure)?(Posix|Windows)?Path"
)


class _Reader(pickle.Unpickler):
    """A reader that makes tuples, dicts and records, and nothing else."""

    path: Path

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        known = {("torch", "Size"): tuple, ("collections", "OrderedDict"): OrderedDict}.get((module, name))
        if known or _KNOWN.fullmatch(f"{module}.{name}"):
            return known or _Record
        found, expected = shown(f"{module}.{name}"), "what torch.distributed.checkpoint writes"
        refuse(
            self.path, "It wants to run code, and was not read.", found=found, expected=expected, fix="do not use it"
        )


def _metadata(folder: Path) -> dict[str, Any]:
    path = folder / NAME
    with open_regular(path) as stream:
        raw = stream.read(MOST_BYTES + 1)
    size = sum(file.stat().st_size for file in folder.iterdir() if file.suffix == ".distcp")
    check_pickles(raw, path, times=allowance(size))
    reader = _Reader(io.BytesIO(raw))
    reader.path = path
    try:
        return dict(reader.load().state)
    except TieError:
        raise
    except Exception as error:  # whatever a broken pickle makes Python say
        _broken(path, f"something else: {short(ascii(str(error)))}")


def _tensors(found: Mapping[str, Any], folder: Path) -> Any:
    """Yield the tensors by name."""
    places: dict[tuple[str, tuple[int, ...]], Any] = {}
    for index, info in found["storage_data"].items():
        if index.state.get("offset") is not None:
            places[index.state["fqn"], tuple(index.state["offset"])] = info.state
    for name, entry in found["state_dict_metadata"].items():
        if "chunks" not in entry.state:  # no tensor
            continue
        dtype, shape = entry.state["properties"].state[0], tuple(entry.state["size"])
        chunks = [_place(places, name, chunk.state, folder) for chunk in entry.state["chunks"]]
        nbytes = math.prod(shape) * dtype.itemsize
        if any(type(size) is not int or size < 0 for size in shape) or nbytes > sum(one.length for one in chunks):
            _broken(folder / NAME, f"{shown(name)} of shape {short(str(shape))}, more than what is stored of it")
        known = dtype_name(dtype) or str(dtype).removeprefix("torch.")
        yield name, ChunkedTensor(folder, known, shape, nbytes, True, dtype, tuple(chunks))


def _place(places: Mapping[Any, Any], name: str, chunk: Mapping[str, Any], folder: Path) -> Place:
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
    return Place(file, int(info["offset"]), int(info["length"]), offsets, sizes)


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
