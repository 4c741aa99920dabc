"""Checkpoints as they lie on the disk: every tensor by name, its bytes mapped, none of them copied.

Owns: what a checkpoint is, whether one file, a folder of shards or a `.pt`, and opening it safely. Must not
write, nor compare values. Read next: `files/auditing/audit.py`.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from tied.files.reading.dtypes import BITS, torch_dtype
from tied.files.reading.folder import Index, find_checkpoint, read_index
from tied.files.reading.refusal import refuse
from tied.files.reading.regular_file import open_regular
from tied.files.reading.safetensors_header import Header, read_header_of

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["safetensors", "sharded", "torch"]
Words = NDArray[np.unsignedinteger[Any]]

_WORD = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}


@dataclass(frozen=True)
class Stored:
    """One tensor of a checkpoint, read only when asked.

    Attributes:
        file: The file that holds it.
        dtype: As a header calls it; where safetensors has no such dtype, as torch calls it.
        shape: As a header writes it.
        nbytes: Of the values, wherever they lie.
        plain: Whether it has words: sparse, quantized and expanded tensors of a `.pt` have none.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    plain: bool

    def words(self) -> Words:
        """Return the elements as unsigned integers of their width, in the tensor's shape, without a copy.

        Elements that share a byte, or are wider than eight bytes, come as a row of bytes.
        """
        raise NotImplementedError

    def tensor(self) -> Tensor:
        """Return the tensor over the file's memory. Writing to it changes no file."""
        raise NotImplementedError


@dataclass(frozen=True)
class MappedTensor(Stored):
    """A tensor in a safetensors file: its bytes begin at `place` in `content`, which is the file."""

    content: mmap.mmap = field(repr=False)
    place: int

    def words(self) -> Words:
        """Return the elements as unsigned integers; F4 and F6 as a row of bytes."""
        bits = BITS[self.dtype]
        kind = _WORD.get(bits, np.uint8)
        shape = self.shape if bits in _WORD else (self.nbytes,)
        return np.frombuffer(self.content, kind, self.nbytes // kind().itemsize, self.place).reshape(shape)

    def tensor(self) -> Tensor:
        """Return the tensor over the file's bytes, or over a copy where they lie askew.

        Raises:
            FileError: This torch has no such dtype.
        """
        import torch

        dtype = torch_dtype(self.dtype)
        if dtype is None:
            problem, fix = f"This torch has no {self.dtype}.", "use a newer torch"
            refuse(self.file, problem, found=f"torch {torch.__version__}", expected=f"one with {self.dtype}", fix=fix)
        shape = (*self.shape[:-1], self.shape[-1] // 2) if self.dtype == "F4" else self.shape
        if not self.nbytes:
            return torch.empty(shape, dtype=dtype)
        if self.place % dtype.itemsize:
            return torch.frombuffer(bytearray(self.words()), dtype=dtype).reshape(shape)
        count = self.nbytes // dtype.itemsize
        return torch.frombuffer(self.content, dtype=dtype, count=count, offset=self.place).reshape(shape)


@dataclass(frozen=True)
class OneFile:
    """One file of a checkpoint.

    Attributes:
        path: Where it lies.
        tensors: What it stores, by name, in its order.
        header: Where it is a safetensors file.
        loaded: What `torch.load` gave, where it is not.
    """

    path: Path
    tensors: Mapping[str, Stored]
    header: Header | None = None
    loaded: Any = None


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

    Nothing is read but headers; a `.pt` is read with `weights_only=True`.

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
        from tied.files.reading.pt_file import open_pickled

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
