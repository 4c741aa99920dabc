"""Files that `torch.save` wrote, read with `weights_only=True` and nothing else.

Owns: what may be unpickled, and finding the tensors in what comes out. Must not know what they are for: that
is `anatomy.py`.

torch's reader is asked only after the outside was checked: a zip archive must store its parts as they are,
none beyond the archive's own size, so that nothing unfolds to more than it is.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

import torch
from torch import Tensor

from tied.errors import short
from tied.files.dtypes import dtype_name
from tied.files.opening import open_regular
from tied.files.reader import OneFile, Stored, Words
from tied.files.refusal import AGAIN, SPLIT, refuse, shown

MOST_PICKLE = 1 << 24
MOST_NODES = 200_000
MOST_LEAVES = 10_000_000
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
        if is_zip:
            _check_archive(stream, path)
    return described(_load(path, is_zip), path)


def described(loaded: Any, path: Path) -> OneFile:
    """Return what was loaded as the content of a file."""
    tensors = {name: PickledTensor.of(value, path) for name, value in tensors_in(loaded, path)}
    return OneFile(path, tensors, loaded=loaded)


def _check_archive(stream: BinaryIO, path: Path) -> None:
    size = stream.seek(0, 2)
    try:
        parts = zipfile.ZipFile(stream).infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as error:
        _refuse(path, "Its archive is broken.", short(ascii(str(error))), "a whole zip archive", AGAIN)
    if any(part.filename.endswith("/constants.pkl") for part in parts):
        _refuse(path, "It is a program, not a checkpoint.", "TorchScript", "tensors by name", _RESAVE)
    packed = [part.filename for part in parts if part.compress_type or part.file_size != part.compress_size]
    if packed:
        _refuse(path, "A part of it is compressed.", shown(packed[0]), "parts stored as they are", _RESAVE)
    total = sum(part.file_size for part in parts)
    if total > size:
        _refuse(path, "Its parts are larger than the file.", f"{total} bytes in {size}", "parts side by side", _RESAVE)
    for part in parts:
        if part.filename.endswith(".pkl") and part.file_size > MOST_PICKLE:
            found, expected = f"{part.file_size} bytes of {shown(part.filename)}", f"at most {MOST_PICKLE}"
            _refuse(path, "It lists too much.", found, expected, SPLIT)


_RESAVE = "load it where you trust it, and torch.save(model.state_dict(), path)"


def _is_plain(value: Tensor, nbytes: int) -> bool:
    """Tell whether a tensor has elements of its own, one after another, that can be seen."""
    if value.layout is not torch.strided or value.device.type != "cpu" or value.is_quantized:
        return False
    return nbytes <= value.untyped_storage().nbytes()


def _load(path: Path, is_zip: bool) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except OSError:
        raise
    except Exception as error:  # whatever a broken pickle makes torch say
        text = str(error)
        code = re.search(r"unsupported (?:global|operand|class).*?(\w+(?:\.\w+)+)", text, re.IGNORECASE)
        if code:
            found = shown(code[1])
            _refuse(path, "It wants to run code, and was not read.", found, "tensors and plain values", _RESAVE)
        _refuse(path, "torch cannot read it.", short(ascii(text.split("\n")[0])), "a file of torch.save", AGAIN)


def tensors_in(loaded: Any, path: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of nested dicts, lists and tuples, named by its keys and positions joined with dots.

    Raises:
        FileError: There is no end to it, or two tensors have one name.
    """
    seen: set[str] = set()
    nodes, leaves = MOST_NODES, MOST_LEAVES
    stack: list[tuple[str, Any, int]] = [("", loaded, 0)]
    while stack:
        name, value, depth = stack.pop()
        inner = _inner(value)
        nodes, leaves = nodes - 1, leaves - len(inner)
        if depth > MOST_DEPTH or min(nodes, leaves) < 0:
            found, expected = f"{shown(name)}, {depth} levels deep", f"{MOST_DEPTH} levels, {MOST_NODES} names"
            _refuse(path, "It is nested without end.", found, expected, _RESAVE)
        if isinstance(value, Tensor):
            if name in seen:
                _refuse(path, "Two tensors have one name.", shown(name), "a name for each", _RESAVE)
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


def _refuse(path: Path, problem: str, found: str, expected: str, fix: str) -> NoReturn:
    refuse(path, problem, found=found, expected=expected, fix=fix)
