"""Files that `torch.save` wrote, read without running, importing or making anything that they name.

Owns: opening them, in the form of a zip archive and in the older one, and what each of their tensors is. Must not
know what tensors are for: that is `files/auditing/pt_storages.py`.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tied.files.reading.dtypes import dtype_name
from tied.files.reading.inert import Rebuilt
from tied.files.reading.named_tensors import contents
from tied.files.reading.pickle_codes import load
from tied.files.reading.pickle_machine import Machine
from tied.files.reading.rebuild import Storages, said_of, tensor_of, unwrapped
from tied.files.reading.refusal import AGAIN, RESAVE, refuse, shown
from tied.files.reading.regular_file import open_regular
from tied.files.reading.stored import OneFile, Stored, Words
from tied.files.reading.zip_archive import Places, checkpoints_in, pickle_in

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001  # with which files begin that torch.save wrote before 1.6
MOST_EXPANDED = 1 << 26  # bytes, in a file that is smaller
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

Content = bytearray | mmap.mmap


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


@dataclass(frozen=True)
class OtherTensor(Stored):
    """A tensor that has no elements of its own, one after another: sparse, quantized, without values."""

    name: str

    def words(self) -> Words:
        """Refuse: there are none."""
        return self.tensor().numpy()

    def tensor(self) -> Tensor:
        """Refuse it by what it is.

        Raises:
            FileError: Always.
        """
        fix = "load it where you trust it, make this tensor plain, and torch.save the state dict"
        expected = "elements that lie one after another"
        refuse(self.file, f"{shown(self.name)} has no plain elements.", f"a tensor that is {self.dtype}", expected, fix)


def open_pickled(path: Path) -> OneFile:
    """Read a file that `torch.save` wrote; of other objects in it nothing is made.

    Raises:
        FileError: It is broken, or no file of torch, or built to fill the memory.
        OSError: It cannot be opened.
    """
    with open_regular(path) as stream:
        start = stream.read(512)
        if not start:
            refuse(path, "It is empty.", found="0 bytes", expected="a file of torch.save", fix=AGAIN)
        content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
    if start[257:262] == b"ustar":
        refuse(path, "It is a tar archive.", found="tar", expected="a file of torch.save", fix=RESAVE)
    inside = checkpoints_in(content, path) if start.startswith(b"PK\x03\x04") else {}
    if not inside:
        return described(unpickled(content, path), path)
    view = memoryview(content)
    parts = {name: bytearray(view[begin : begin + length]) for name, (begin, length) in inside.items()}
    return described({name.removesuffix(".pth"): unpickled(part, path) for name, part in parts.items()}, path)


def unpickled(content: Content, path: Path) -> Any:
    """Return what `torch.save` wrote: plain containers, tensors that are still to be made, and what stays inert."""
    if content[:4] == b"PK\x03\x04":
        pickled, places = pickle_in(content, path)
        machine = Machine(pickled, path, size=len(content))
        loaded = load(machine)
    else:
        machine = Machine(content, path, size=len(content))
        loaded, places = _old(machine, content)
    storages = Storages(content, places, path)
    for external in machine.externals:
        external.source = storages
    return loaded


def _old(machine: Machine, content: Content) -> tuple[Any, Places]:
    """Read a file from before torch 1.6: five pickles, and after them the storages in the order of the fifth."""
    path = machine.path
    first = load(machine)
    if first != MAGIC or load(machine) != VERSION:
        found = type(first).__name__
        refuse(path, "It is a pickle, but none of torch.save.", found, "a file of torch.save", RESAVE)
    load(machine)  # of the system
    loaded, keys = load(machine), load(machine)
    said = (said_of(one, path) for one in machine.externals)
    widths = {key: (dtype.itemsize, count) for dtype, key, count, _ in said}
    places: Places = {}
    at = machine.at
    for key in keys if isinstance(keys, list) else ():
        width, count = widths.get(key, (0, 0)) if isinstance(key, str) else (0, 0)
        stored = int.from_bytes(content[at : at + 8], "little")
        if not width or stored != count or at + 8 + stored * width > len(content):
            found, expected = f"{stored} elements of storage {shown(str(key))}", f"{count}, inside the file"
            refuse(path, "A storage is not whole.", found=found, expected=expected, fix=AGAIN)
        places[key] = (at + 8, count * width)
        at += 8 + count * width
    return loaded, places


def described(loaded: Any, path: Path) -> OneFile:
    """Return what was loaded as the content of a file."""
    found = contents(loaded, path)
    made: dict[int, Stored] = {}
    for name, value in found.tensors.items():
        if id(value) not in made:
            made[id(value)] = _stored(name, value, path)
    tensors = {name: made[id(value)] for name, value in found.tensors.items()}
    return OneFile(path, tensors, loaded=loaded, beside=found.beside, training=tuple(found.training))


def _stored(name: str, value: Tensor | Rebuilt, path: Path) -> Stored:
    plain = unwrapped(value) if isinstance(value, Rebuilt) else value
    if isinstance(plain, str):
        return OtherTensor(path, plain, (), 0, False, name)
    if isinstance(plain, Tensor):
        return PickledTensor.of(plain, path)
    found = PickledTensor.of(tensor_of(plain, path), path)
    if found.nbytes > max(MOST_EXPANDED, len(plain.args[0].source.content)):
        return OtherTensor(path, "expanded", found.shape, found.nbytes, False, name)
    return found


def made(loaded: Any, path: Path) -> Tensor | None:
    """Return the tensor that a pickle holds and nothing else; None where it is no plain one."""
    plain = unwrapped(loaded) if isinstance(loaded, Rebuilt) else None
    return tensor_of(plain, path) if isinstance(plain, Rebuilt) else None


def _is_plain(value: Tensor, nbytes: int) -> bool:
    """Tell whether a tensor has elements of its own, one after another, that can be seen."""
    if value.layout is not torch.strided or value.device.type != "cpu" or value.is_quantized:
        return False
    return nbytes <= value.untyped_storage().nbytes()
