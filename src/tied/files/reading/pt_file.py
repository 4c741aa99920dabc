"""Files that `torch.save` wrote, read with `weights_only=True` and nothing else.

Owns: what may be unpickled, and finding the tensors in what comes out. Must not know what they are for: that
is `files/auditing/pt_storages.py`.

torch's reader is asked only after the archive (`zip_archive.py`) and the instructions in it (`pickle_limits.py`)
were looked at, so that nothing unfolds to more than it is.
"""

from __future__ import annotations

import mmap
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from tied.errors import short
from tied.files.reading.dtypes import dtype_name
from tied.files.reading.pickle_limits import check_pickles
from tied.files.reading.refusal import AGAIN, RESAVE, refuse, shown
from tied.files.reading.regular_file import open_regular
from tied.files.reading.stored import OneFile, Stored, Words
from tied.files.reading.zip_archive import allowance, pickle_in

OLD_PICKLES = 5  # as torch.save wrote before 1.6: a magic number, a version, the system, the content, the storages
MOST_NODES = 200_000
MOST_LEAVES = 2_000_000
MOST_LETTERS = 1 << 25
MOST_DEPTH = 32
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class PickledTensor(Stored):
    """A tensor that `torch.load` gave; its memory is the file's, where the file can be mapped."""

    value: Tensor

    @classmethod
    def of(cls, value: Tensor, file: Path) -> PickledTensor:
        """Describe a tensor as a header would."""
        dtype = dtype_name(value.dtype)
        shape = tuple(value.shape)
        if dtype == "F4":
            shape = (*shape[:-1], shape[-1] * 2)
        nbytes = value.numel() * value.element_size()
        return cls(
            file, dtype or str(value.dtype).removeprefix("torch."), shape, nbytes, _is_plain(value, nbytes), value
        )

    def words(self) -> Words:
        """Return the elements as unsigned integers, strided as they lie."""
        plain = self.value.detach().resolve_conj().resolve_neg()
        width = plain.element_size()
        if width not in _BITS:
            plain, width = plain.contiguous().view(torch.uint8), 1
        return plain.view(_BITS[width]).numpy().view(f"u{width}")

    def tensor(self) -> Tensor:
        """Return the tensor."""
        return self.value


def open_pickled(path: Path) -> OneFile:
    """Read a file that `torch.save` wrote.

    Raises:
        FileError: It holds more than tensors and plain values, or is broken, or built to fill the memory.
        OSError: It cannot be opened.
    """
    with open_regular(path) as stream:
        is_zip = stream.read(4) == b"PK\x03\x04"
        size = stream.seek(0, os.SEEK_END)
        if is_zip:
            check_pickles(pickle_in(stream, path), path, times=allowance(size))
        elif size:
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
                check_pickles(content, path, pickles=OLD_PICKLES, times=allowance(size))
    return described(_load(path, path, mapped=is_zip), path)


def unpickled(content: BytesIO, path: Path) -> Any:
    """Read what `torch.save` wrote to a part of a file; the same is refused."""
    check_pickles(pickle_in(content, path), path)
    content.seek(0)
    return _load(content, path)


def described(loaded: Any, path: Path) -> OneFile:
    """Return what was loaded as the content of a file."""
    tensors = {name: PickledTensor.of(value, path) for name, value in tensors_in(loaded, path)}
    return OneFile(path, tensors, loaded=loaded)


def _is_plain(value: Tensor, nbytes: int) -> bool:
    """Tell whether a tensor has elements of its own, one after another, that can be seen."""
    if value.layout is not torch.strided or value.device.type != "cpu" or value.is_quantized:
        return False
    return nbytes <= value.untyped_storage().nbytes()


def _load(content: Path | BytesIO, path: Path, *, mapped: bool = False) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(content, map_location="cpu", weights_only=True, mmap=mapped)
    except OSError:
        raise
    except Exception as error:  # whatever a broken pickle makes torch say
        text = str(error)
        code = re.search(r"unsupported (?:global|operand|class).*?(\w+(?:\.\w+)+)", text, re.IGNORECASE)
        if code:
            found = shown(code[1])
            refuse(path, "It wants to run code, and was not read.", found, "tensors and plain values", RESAVE)
        refuse(path, "torch cannot read it.", short(ascii(text.split("\n")[0])), "a file of torch.save", AGAIN)


def tensors_in(loaded: Any, path: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of nested dicts, lists and tuples, named by its keys and positions joined with dots.

    Raises:
        FileError: There is no end to it, or two tensors have one name.
    """
    seen: set[str] = set()
    nodes, leaves, letters = MOST_NODES, MOST_LEAVES, MOST_LETTERS
    stack: list[tuple[str, Any, int]] = [("", loaded, 0)]
    while stack:
        name, value, depth = stack.pop()
        inner = _inner(value)
        nodes, leaves, letters = nodes - 1, leaves - len(inner), letters - len(name)
        if depth > MOST_DEPTH or min(nodes, leaves, letters) < 0:
            found, expected = f"{shown(name)}, {depth} levels deep", f"{MOST_DEPTH} levels, {MOST_NODES} names"
            refuse(path, "It is nested without end.", found, expected, RESAVE)
        if isinstance(value, Tensor):
            if name in seen:
                refuse(path, "Two tensors have one name.", shown(name), "a name for each", RESAVE)
            seen.add(name)
            yield name, value
        stack += [
            (f"{name}.{key}" if name else str(key), one, depth + 1)
            for key, one in reversed(inner)
            if isinstance(one, _NODES)
        ]


_NODES = (Tensor, Mapping, list, tuple)


def _inner(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, Tensor):
        return []
    if isinstance(value, Mapping):
        return list(cast(Mapping[Any, Any], value).items())
    if isinstance(value, list | tuple):
        return list(enumerate(cast(list[Any], value)))
    return []
