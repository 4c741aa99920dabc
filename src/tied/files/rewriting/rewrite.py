"""A checkpoint written anew from another one: streamed, read back, and only then put in its place.

Owns: the way of tensors from one checkpoint to the next. Must not decide which tensors: that is for `shrink.py`,
`expand.py` and `repair.py`.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tied.errors import FileError
from tied.files.auditing.compare import same_bytes
from tied.files.reading.checkpoint import Checkpoint
from tied.files.reading.refusal import refuse, shown, shown_path
from tied.files.reading.safetensors_header import Header, read_header_of
from tied.files.reading.stored import MappedTensor, Stored, Words
from tied.files.rewriting.atomic_write import new_files

CHUNK = 1 << 24
SUFFIX = ".safetensors"

Tell = Callable[[str, int, int], None]
"""Told how far it is: the stage, bytes done, bytes in all."""


def silent(stage: str, done: int, total: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Piece:
    """A tensor to be written: what the header says of it, and how to get its elements."""

    dtype: str
    shape: tuple[int, ...]
    words: Callable[[], Words]

    @classmethod
    def of(cls, stored: Stored) -> Piece:
        """Write a tensor as it is stored."""
        return cls(stored.dtype, stored.shape, stored.words)


@dataclass(frozen=True)
class NewFile:
    """A file to be written: its name, its tensors in their order, its metadata."""

    name: str
    pieces: Mapping[str, Piece]
    metadata: Mapping[str, str] | None

    @property
    def header(self) -> Header:
        """The header of the file."""
        return Header.of({name: (piece.dtype, piece.shape) for name, piece in self.pieces.items()}, self.metadata)


@dataclass(frozen=True)
class Rewrite:
    """A checkpoint to be written: one file, or the shards of a folder with the content of their index."""

    files: Sequence[NewFile]
    index: tuple[str, Mapping[str, Any]] | None = None

    def write(self, target: Path, prove: Callable[[Mapping[str, Stored]], None], tell: Tell = silent) -> int:
        """Write it to `target`, read it back, let `prove` look at it, and put it in place; return the bytes.

        Raises:
            FileError: What was read back is not what was meant; or something stands at `target`.
            OSError: It cannot be written. Nothing is left of it.
        """
        with _room(target, self.index is not None) as paths_in:
            names = [file.name for file in self.files] + ([self.index[0]] if self.index else [])
            total = sum(file.header.data_bytes for file in self.files)
            with new_files([paths_in(name) for name in names]) as streams:
                written = 0
                for stream, file in zip(streams, self.files, strict=False):
                    written = _write(stream, file, Steps("writing", written, total, tell))
                if self.index:
                    streams[-1].write((json.dumps(self.index[1], indent=2, ensure_ascii=False) + "\n").encode())
                found = self._read_back(streams, target, Steps("checking", 0, total, tell))
                prove(found)
                return sum(stream.seek(0, os.SEEK_END) for stream in streams)

    def _read_back(self, streams: Sequence[BinaryIO], target: Path, steps: Steps) -> dict[str, Stored]:
        found: dict[str, Stored] = {}
        for stream, file in zip(streams, self.files, strict=False):
            stream.flush()
            tensors = _mapped(stream, target)
            for name, piece in file.pieces.items():
                if name not in tensors or not same_bytes(np.ascontiguousarray(piece.words()), tensors[name].words()):
                    problem, expected = f"{shown(name)} was not written as it is.", "the bytes that were meant"
                    refuse(target, problem, found="other bytes", expected=expected, fix="check the disk")
                steps.add(tensors[name].nbytes)
            found |= tensors
        return found


@dataclass
class Steps:
    """How far one stage is."""

    stage: str
    done: int
    total: int
    tell: Tell

    def add(self, nbytes: int) -> int:
        """Count bytes as done."""
        self.done += nbytes
        self.tell(self.stage, self.done, self.total)
        return self.done


@contextmanager
def _room(target: Path, is_folder: bool) -> Generator[Callable[[str], Path]]:
    """Make sure that nothing stands where the new checkpoint goes; a folder made for it goes if it does not come."""
    if target.exists() and not (is_folder and target.is_dir() and not any(target.iterdir())):
        fix = "name another place, or remove what stands there"
        refuse(target, "Something stands there already.", found="a file or a folder", expected="nothing", fix=fix)
    if not is_folder:
        if target.suffix != SUFFIX:
            fix = shown(target.with_suffix(SUFFIX))
            refuse(target, "The new file is safetensors.", found=shown(target.name), expected=f"*{SUFFIX}", fix=fix)
        yield lambda _: target
        return
    made = not target.exists()
    target.mkdir(exist_ok=True)
    try:
        yield lambda name: target / name
    except BaseException:
        if made:
            with contextlib.suppress(OSError):
                target.rmdir()
        raise


def _write(stream: BinaryIO, file: NewFile, steps: Steps) -> int:
    stream.write(file.header.to_bytes())
    for piece in file.pieces.values():
        content = np.ascontiguousarray(piece.words()).reshape(-1).view(np.uint8).data
        for start in range(0, len(content), CHUNK):
            steps.add(stream.write(content[start : start + CHUNK]))
    return steps.done


def _mapped(stream: BinaryIO, path: Path) -> dict[str, Stored]:
    """Read a file that is being written."""
    with os.fdopen(os.dup(stream.fileno()), "rb") as again:
        header, start = read_header_of(again, path)
        content = mmap.mmap(again.fileno(), 0, access=mmap.ACCESS_COPY)
    return {
        name: MappedTensor(path, entry.dtype, entry.shape, entry.nbytes, True, content, start + entry.begin)
        for name, entry in header.tensors.items()
    }


def in_data_order(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the file of each name, in the order in which the tensors lie, file after file."""
    places: dict[str, str] = {}
    for one in checkpoint.files:
        for name in one.header.by_offset() if one.header else one.tensors:
            if checkpoint.tensors.get(name) is one.tensors[name]:
                places[name] = one.path.name
    return places


def unsafe(path: Path, problem: str, *, found: str, fix: str) -> FileError:
    """Word why a checkpoint cannot be written anew without losing something."""
    return FileError(f"{shown_path(path)}: {problem}", found=found, expected="nothing lost", fix=fix)
