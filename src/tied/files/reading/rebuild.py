"""Tensors over the bytes of a file, from what a pickle says of them.

Owns: what a tensor may be: elements that lie in a storage of the file. Must not call what a pickle names, nor
take memory for what a file only says it holds. Read next: `pt_file.py`.
"""

from __future__ import annotations

import math
from mmap import mmap
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from torch import Tensor

from tied.files.reading.inert import External, Inert, Named, Rebuilt
from tied.files.reading.refusal import AGAIN, refuse, shown
from tied.files.reading.zip_archive import Places

MOST_WRAPPED = 8
MOST_DIMENSIONS = 64
MOST_NUMBER = 1 << 62
ALIGNED = 16  # bytes: the widest element
DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "UntypedStorage": torch.uint8,
    "QInt8Storage": torch.int8,
    "QUInt8Storage": torch.uint8,
    "QInt32Storage": torch.int32,
    "QUInt4x2Storage": torch.uint8,
    "QUInt2x4Storage": torch.uint8,
}
_WRAPPERS = ("Parameter", "Variable", "_rebuild_parameter", "_rebuild_parameter_with_state")
_TYPED = ("_rebuild_from_type", "_rebuild_from_type_v2")
_PLAIN = {"_rebuild_tensor": 4, "_rebuild_tensor_v2": 6, "_rebuild_tensor_v3": 7}  # arguments
_OTHERS = {
    "_rebuild_qtensor": "quantized",
    "_rebuild_sparse_tensor": "sparse",
    "_rebuild_sparse_csr_tensor": "sparse",
    "_rebuild_meta_tensor_no_storage": "without values",
    "_rebuild_nested_tensor": "nested",
}


class Storages:
    """The storages of one file, each made once, over the file's own bytes where they lie well.

    Args:
        content: The file.
        places: Where each begins, and its length in bytes, by its key.
        path: For messages.
    """

    def __init__(self, content: bytearray | mmap, places: Places, path: Path) -> None:
        self.content, self.places, self.path = content, places, path
        self.made: dict[Any, torch.UntypedStorage] = {}

    def storage(self, external: Any) -> tuple[torch.UntypedStorage, torch.dtype]:
        """Return what a pickle names, and the dtype of its elements."""
        dtype, key, count, view = said_of(external, self.path)
        begin, length = self.places.get(key, (0, -1))
        nbytes = count * dtype.itemsize
        if view is not None:
            _, offset, count = view
            begin, length = begin + offset * dtype.itemsize, length - offset * dtype.itemsize
            nbytes = count * dtype.itemsize
        if nbytes > length:
            found = f"{max(length, 0)} bytes of storage {shown(key)}"
            refuse(self.path, "A storage is not whole.", found=found, expected=f"{nbytes} bytes", fix=AGAIN)
        at = (key, begin, nbytes)
        if at not in self.made:
            self.made[at] = self._make(begin, nbytes)
        return self.made[at], dtype

    def _make(self, begin: int, nbytes: int) -> torch.UntypedStorage:
        if not nbytes:
            return torch.UntypedStorage(0)
        content, offset = self.content, begin
        if begin % ALIGNED:
            content, offset = bytearray(memoryview(content)[begin : begin + nbytes]), 0
        return torch.frombuffer(content, dtype=torch.uint8, count=nbytes, offset=offset).untyped_storage()


def said_of(external: Any, path: Path) -> tuple[torch.dtype, str, int, tuple[Any, int, int] | None]:
    """Return what a pickle says of a storage: dtype, key, number of elements, and of which part it is a view."""
    said: Any = external.said if isinstance(external, External) else None
    if isinstance(said, tuple) and len(cast(tuple[Any, ...], said)) in (5, 6):
        word, kind, key, _, count, *more = cast(tuple[Any, ...], said)
        view = more[0] if more else None
        dtype = DTYPES.get(kind.name.rpartition(".")[2]) if isinstance(kind, Named) else None
        fits = word == "storage" and dtype is not None and isinstance(key, str) and are_counts((count,))
        if fits and (view is None or (isinstance(view, tuple) and len(view) == 3 and are_counts(view[1:]))):
            return cast(torch.dtype, dtype), key, count, view
    expected = "a storage, as torch.save names it"
    refuse(path, "A tensor lies in no storage.", found=shown(_kind(said)), expected=expected, fix=AGAIN)


def are_counts(numbers: Any) -> bool:
    """Tell whether these are whole numbers that a size can have."""
    return isinstance(numbers, tuple) and all(type(one) is int and 0 <= one < MOST_NUMBER for one in numbers)


def unwrapped(node: Rebuilt) -> Rebuilt | str:
    """Return the plain tensor that a Parameter, or an instance of another class, is of; or what it is instead."""
    for _ in range(MOST_WRAPPED):
        name, args = node.name.rpartition(".")[2], node.args
        inner: Any = None
        if name in _PLAIN:
            return node
        if name in _WRAPPERS and args:
            inner = args[0]
        elif name in _TYPED and len(args) > 2 and isinstance(args[0], Named) and isinstance(args[2], tuple):
            inner = Rebuilt(args[0].name, args[2])
        if not isinstance(inner, Rebuilt):
            return _OTHERS.get(name, f"of a kind of its own ({_class(node)})")
        node = inner
    return "wrapped without end"


def _class(node: Rebuilt) -> str:
    named = [one.name for one in node.args[:2] if isinstance(one, Named)]
    return named[-1] if named else node.name


def tensor_of(node: Rebuilt, path: Path) -> Tensor:
    """Return a plain tensor over its storage: no element is read.

    Raises:
        FileError: It leaves its storage, or is broken.
    """
    name, args = node.name.rpartition(".")[2], node.args
    if not _PLAIN[name] <= len(args) <= _PLAIN[name] + 1:
        _broken(path, f"{len(args)} arguments")
    source: Any = args[0].source if isinstance(args[0], External) else None
    if not isinstance(source, Storages):
        _broken(path, f"elements in {_kind(args[0])}")
    storage, dtype = source.storage(args[0])
    if name == "_rebuild_tensor_v3":
        dtype = dtype_of(args[6], path)
    offset, size, stride = args[1:4]
    check_inside(path, storage.nbytes() // dtype.itemsize, offset, size, stride)
    marks: Any = args[_PLAIN[name]] if len(args) > _PLAIN[name] else None
    try:
        return _marked(torch.empty(0, dtype=dtype).set_(cast(Any, storage), offset, size, stride), marks)
    except (RuntimeError, TypeError, ValueError) as error:
        _broken(path, str(error).split("\n")[0])


def dtype_of(named: Any, path: Path) -> torch.dtype:
    """Return the dtype that a pickle names; nothing else is looked up."""
    module, _, name = named.name.rpartition(".") if isinstance(named, Named) else ("", "", "")
    dtype = vars(torch).get(name) if module == "torch" else None
    if not isinstance(dtype, torch.dtype):
        expected, fix = "a dtype of this torch", "use a newer torch"
        refuse(path, "A tensor has an unknown dtype.", found=shown(_kind(named)), expected=expected, fix=fix)
    return dtype


def check_inside(path: Path, elements: int, offset: Any, size: Any, stride: Any) -> None:
    """Refuse a tensor that does not lie in a storage of so many elements."""
    fits = are_counts((offset,)) and are_counts(size) and are_counts(stride) and len(size) == len(stride)
    if not fits or len(size) > MOST_DIMENSIONS or math.prod(size) >= MOST_NUMBER:
        _broken(path, "sizes or strides that no tensor has")
    last = offset + sum((count - 1) * step for count, step in zip(size, stride, strict=True))
    if math.prod(size) and last >= elements:
        _broken(path, f"element {last} of a storage of {elements}")


def _marked(tensor: Tensor, marks: Any) -> Tensor:
    """Return a tensor as its conjugate or its negative, where it was saved so."""
    found = cast(dict[Any, Any], marks) if isinstance(marks, dict) else {}
    tensor = tensor.conj() if found.get("conj") is True else tensor
    return cast(Any, torch)._neg_view(tensor) if found.get("neg") is True else tensor


def _kind(value: Any) -> str:
    return value.kind if isinstance(value, Inert) else value.name if isinstance(value, Named) else type(value).__name__


def _broken(path: Path, found: str) -> NoReturn:
    refuse(path, "A tensor is broken.", found=shown(found), expected="one that lies in its storage", fix=AGAIN)
