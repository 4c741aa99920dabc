"""A checkpoint as if every name were stored.

Owns: reading by name, whether the file stores the name or its ledger restores it; `load_file`. Must not know
models. Read next: `files/models/load.py`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from tied.errors import during
from tied.files.reading.checkpoint import Checkpoint, open_checkpoint
from tied.files.reading.distributed_folder import is_distributed, open_distributed
from tied.files.reading.file_ledger import Equation, Ledger, read_ledger
from tied.files.reading.stored import Stored


@dataclass(frozen=True)
class Expansion:
    """A checkpoint and its ledger.

    Attributes:
        checkpoint: The file or folder, opened.
        ledger: What it says is equal; None where it says nothing.
    """

    checkpoint: Checkpoint
    ledger: Ledger | None

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Expansion:
        """Open a checkpoint and check its ledger; no tensor is read.

        Raises:
            FileError: The file, or what it says, is broken.
            OSError: It cannot be opened.
        """
        folder = Path(path)
        found = open_distributed(folder) if is_distributed(folder) else open_checkpoint(folder)
        specs = {name: (stored.dtype, stored.shape) for name, stored in found.tensors.items()}
        return cls(found, read_ledger(found.metadata, specs, found.path))

    @cached_property
    def equations(self) -> Mapping[str, Equation]:
        """What the ledger says of each target, stored or not."""
        return {} if self.ledger is None else {equation.target: equation for equation in self.ledger.ties}

    @property
    def stored(self) -> Mapping[str, Stored]:
        """What the file stores."""
        return self.checkpoint.tensors

    def names(self) -> list[str]:
        """Return all names, in the order of the expanded file."""
        return list(self.stored) if self.ledger is None else self.ledger.order(self.stored)

    def tensor(self, name: str) -> Tensor:
        """Return a tensor, stored or restored; it may share memory with the file and with others."""
        if name in self.stored:
            return self.stored[name].tensor()
        return self.equations[name].restore(lambda other: self.stored[other].tensor())

    def own(self, name: str) -> Tensor:
        """Return a tensor that shares memory with no other of them."""
        tensor = self.tensor(name)
        if name in self.stored and self.checkpoint.kind != "torch":
            return tensor
        return tensor.clone(memory_format=torch.contiguous_format)


def load_file(path: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Read every tensor of a checkpoint, those that its ledger restores included.

    Law: the result has each name of the untied model once, with the value that was saved, bit for bit.

    What is stored is mapped, not read, until somebody looks at it; writing to a tensor changes no file. What is
    restored has memory of its own. A file without a ledger gives what `safetensors.torch.load_file` gives.

    Args:
        path: A safetensors file, an index, a folder that holds one of them, a file of `torch.save`, or a folder of
            `torch.distributed.checkpoint`; of these two nothing but tensors is read.
        device: Where the tensors go.

    Raises:
        FileError: The file, or what it says, is broken; nothing of it was run.
        OSError: It cannot be opened.
    """
    with during(f"load_file({os.fspath(path)!r})"):
        found = Expansion.open(path)
        return {name: found.own(name).to(device) for name in found.names()}
