"""Checkpoints as they lie on the disk: every tensor by name, its bytes mapped, none of them copied.

Owns: what a checkpoint is, whether one file, a folder of shards or a `.pt`, and opening it safely. Must not
write, nor compare values. Read next: `files/auditing/audit.py`.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tied.files.reading.folder import Index, find_checkpoint, read_index
from tied.files.reading.regular_file import open_regular
from tied.files.reading.safetensors_header import read_header_of
from tied.files.reading.stored import MappedTensor, OneFile, Stored

Kind = Literal["safetensors", "sharded", "torch"]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, opened.

    Attributes:
        path: The file, or the index of the folder.
        kind: `"safetensors"`, `"sharded"` (an index and its shards) or `"torch"` (written by `torch.save`).
        tensors: What it stores, by name, in the order of the file, or of the index.
        metadata: Of the header, or of the index; `None` where there is none.
        files: The file, or the shards in the order in which the index first names them.
        index: Of a folder.
    """

    path: Path
    kind: Kind
    tensors: Mapping[str, Stored]
    metadata: Mapping[str, str] | None
    files: tuple[OneFile, ...]
    index: Index | None = None


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a safetensors file, an index of shards, a folder that holds one of them, or a `.pt`.

    Nothing is read but headers; of a `.pt` its pickle, of which nothing but plain containers is made.

    Raises:
        FileError: It is broken, hostile, or nothing that can be read.
        OSError: It cannot be opened.
    """
    found = find_checkpoint(Path(path))
    if found.name.endswith(".index.json"):
        return _open_sharded(found)
    one = _open_file(found)
    metadata = one.header.metadata if one.header else None
    return Checkpoint(found, "safetensors" if one.header else "torch", one.tensors, metadata, (one,))


def _open_file(path: Path) -> OneFile:
    if not _is_safetensors(path):
        from tied.files.reading.pt_file import open_pickled  # which loads torch

        return open_pickled(path)
    with open_regular(path) as stream:
        header, start = read_header_of(stream, path)
        content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
    tensors = {
        name: MappedTensor(path, entry.dtype, entry.shape, entry.nbytes, True, content, start + entry.begin)
        for name, entry in header.tensors.items()
    }
    return OneFile(path, tensors, header)


def _open_sharded(path: Path) -> Checkpoint:
    index = read_index(path)
    files = {name: _open_file(shard) for name, shard in index.files.items()}
    tensors = {name: files[at].tensors[name] for name, at in index.places.items() if name in files[at].tensors}
    return Checkpoint(path, "sharded", tensors, index.metadata, tuple(files.values()), index)


def _is_safetensors(path: Path) -> bool:
    """Tell by the name; by the first bytes where the name says nothing."""
    if path.suffix in (".safetensors", ".sft"):
        return True
    with open_regular(path) as stream:
        start = stream.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") < 1 << 32
