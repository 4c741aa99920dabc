"""One tensor of a checkpoint, and one file: described when it is opened, read only when asked.

Owns: what every format gives of its tensors, and those of safetensors, whose bytes are mapped. Must not open files,
nor compare values. Read next: `checkpoint.py`.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tied.files.reading.dtypes import BITS, torch_dtype
from tied.files.reading.refusal import refuse
from tied.files.reading.safetensors_header import Header

if TYPE_CHECKING:
    from torch import Tensor

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
        loaded: What its pickle holds, where it is not; objects are inert, and tensors not made.
        beside: What of that holds no tensor, by name.
        training: The names below which lies state of the training.
    """

    path: Path
    tensors: Mapping[str, Stored]
    header: Header | None = None
    loaded: Any = None
    beside: Mapping[str, Any] = field(default_factory=dict[str, Any])
    training: tuple[str, ...] = ()
