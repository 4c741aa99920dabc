"""Saving: a model, once, with its ties in the header.

Owns: `save`. Must not know how a model shares (`payload.py`), nor how a file takes its place
(`files/rewriting/atomic_write.py`). Read next: `load.py`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from tied.errors import KindError, during
from tied.files.models.payload import Payload, payload
from tied.files.models.pretrained import companions, must_be_stored
from tied.files.reading.dtypes import dtype_name
from tied.files.reading.file_ledger import KEY, Layout
from tied.files.reading.safetensors_header import Header
from tied.files.rewriting.atomic_write import new_files

SUFFIX = ".safetensors"
INDEX = f"{SUFFIX}.index.json"
UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12} | {
    f"{letter}IB": 1 << 10 * power for power, letter in enumerate("KMGT", 1)
}
STEM = "model"
OTHERS = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".gguf", ".onnx", ".h5", ".json")


def save(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    layout: Layout = "compact",
    metadata: Mapping[str, str] | None = None,
    max_shard_size: int | str | None = None,
) -> None:
    """Save a model as safetensors: each value once, and in the header what is equal to what.

    Law: `load(model, path)` gives back every value, bit for bit; so does `tied.files.load_file(path)`, under the
    names of the untied model. It does not matter how the model shares: by ties, by one Parameter in two places, by
    two Parameters over one memory. The file is there whole or not at all: it is written beside its place, brought
    to the disk, and then moved.

    Args:
        model: Any module; compiled and data-parallel ones are saved under their plain names. It is not changed.
        path: `*.safetensors`, or a folder, which gets `model.safetensors`; and `config.json` for a model of
            transformers, so that `from_pretrained` reads it.
        layout: `"compact"`: one copy, for readers that know ties. `"expanded"`: every name, for all others.
        metadata: Texts for the header; `format` is `"pt"` where you do not say otherwise.
        max_shard_size: In bytes, or as `"5GB"`; a larger model becomes several files with an index.

    Raises:
        KindError: Something in the model cannot be stored, or an argument is of the wrong kind.
        OSError: The file cannot be written; whatever stood there still does.

    Example:
        >>> import tempfile, tied
        >>> model = nn.ModuleDict({"encoder": nn.Linear(3, 5), "decoder": nn.Linear(5, 3)})
        >>> _ = tied.tie(model, "decoder.weight", "encoder.weight.T")
        >>> path = Path(tempfile.mkdtemp()) / "model.safetensors"
        >>> save(model, path)
        >>> print(*tied.files.load_file(path))
        encoder.weight encoder.bias decoder.bias decoder.weight

    Source: https://github.com/huggingface/safetensors/issues/98 (shared tensors cannot be saved).
    """
    with during(f"save(model, {os.fspath(path)!r})"):
        if layout not in ("compact", "expanded"):
            raise KindError(
                "The layout is unknown.", found=repr(layout), expected="'compact' or 'expanded'", fix="'compact'"
            )
        place, texts, most = Place.of(path), _texts(metadata), byte_size(max_shard_size)
        found = payload(model, layout, must_be_stored(model) if place.is_folder else None)
        if found.writes:
            beside = companions(model) if place.is_folder else {}
            _write(place, *_files(place, found, layout, texts, most), beside)


@dataclass(frozen=True)
class Place:
    """Where a checkpoint goes.

    Attributes:
        folder: The folder of its files.
        stem: How their names begin.
        is_folder: Whether the folder was named, and so is the checkpoint.
    """

    folder: Path
    stem: str
    is_folder: bool

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> Place:
        """Read what the user said.

        Raises:
            KindError: The path is one of another format.
        """
        meant = Path(path)
        if meant.suffix == SUFFIX and not meant.is_dir():
            return cls(meant.parent, meant.name.removesuffix(SUFFIX), False)
        if meant.suffix.lower() in OTHERS or meant.is_file():
            raise KindError(
                "Models are saved as safetensors.",
                found=f"the suffix {meant.suffix!r}" if meant.suffix else "a file without a suffix",
                expected="a path that ends with .safetensors, or a folder",
                fix=f"save(model, {str(meant.with_suffix(SUFFIX))!r})",
            )
        return cls(meant, STEM, True)


def _texts(metadata: Mapping[Any, Any] | None) -> dict[str, str]:
    texts = {"format": "pt"} | dict(metadata or {})
    odd = [f"{key!r}: {text!r}" for key, text in texts.items() if not isinstance(key, str) or not isinstance(text, str)]
    if odd or KEY in texts:
        found, expected = (odd or [f"the key {KEY!r}"])[0], f"texts, and the key {KEY!r} left free"
        raise KindError("The metadata cannot be stored.", found=found, expected=expected, fix="json.dumps(value)")
    return texts


Files = dict[str, tuple[dict[str, Tensor], dict[str, str]]]
"""The tensors and the metadata of each file, by its name."""


def _files(
    place: Place, found: Payload, layout: Layout, texts: dict[str, str], most: int | None
) -> tuple[Files, dict[str, str]]:
    """Return what each file of tensors gets, and the index where there are several."""
    shards = split({name: tensor.nbytes for name, tensor in found.tensors.items()}, most)
    names = dict(zip(file_names(place.stem, len(shards)), shards, strict=True))
    ledger = found.ledger(layout)
    said = {KEY: ledger.to_text()} if ledger else {}
    index: dict[str, str] = {}
    if len(names) > 1:
        total = sum(tensor.nbytes for tensor in found.tensors.values())
        index, said = {place.stem + INDEX: index_text(names, total, said)}, {}
    return {file: ({name: found.tensors[name] for name in held}, texts | said) for file, held in names.items()}, index


def _write(place: Place, files: Files, index: dict[str, str], beside: dict[str, str]) -> None:
    """Write all files of a checkpoint, and take away those of an earlier one that would be mixed up with it."""
    if place.is_folder:
        place.folder.mkdir(parents=True, exist_ok=True)
    notes = beside | index
    paths = [place.folder / name for name in [*files, *notes]]
    old = [place.folder / (place.stem + end) for end in (INDEX, SUFFIX)] if index else []  # neither may hide the new
    with new_files(paths, instead_of=old) as streams:
        for stream, (tensors, metadata) in zip(streams, files.values(), strict=False):
            write_tensors(stream, tensors, metadata)
        for stream, text in zip(streams[len(files) :], notes.values(), strict=True):
            stream.write(text.encode())
    if place.is_folder or index:
        new = {path.name for path in paths}
        for path in list(place.folder.iterdir()):
            if path.name not in new and is_of(place.stem, path.name):
                path.unlink(missing_ok=True)


def write_tensors(stream: BinaryIO, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file: the header, then every tensor, one at a time in memory."""
    specs = {name: (str(dtype_name(tensor.dtype)), tuple(tensor.shape)) for name, tensor in tensors.items()}
    stream.write(Header.of(specs, metadata).to_bytes())
    for tensor in tensors.values():
        stream.write(_bytes_of(tensor))


def _bytes_of(tensor: Tensor) -> memoryview:
    plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    return plain.reshape(-1).view(torch.uint8).numpy().data


# -- several files: the names and the index that transformers and others know -----------------------------


def byte_size(size: int | str | None) -> int | None:
    """Return a size in bytes.

    Raises:
        KindError: It is none.

    Example:
        >>> byte_size("5GB"), byte_size("2MiB"), byte_size(1000), byte_size(None)
        (5000000000, 2097152, 1000, None)
    """
    if size is None or (type(size) is int and size > 0):
        return size
    found = re.fullmatch(r"\s*([0-9]{1,15}) *([A-Za-z]+)\s*", size) if isinstance(size, str) else None
    if not found or found[2].upper() not in UNITS or not int(found[1]):
        raise KindError(
            "max_shard_size is no size.", found=repr(size), expected="bytes, or a text", fix="such as '5GB'"
        )
    return int(found[1]) * UNITS[found[2].upper()]


def split(sizes: Mapping[str, int], most: int | None) -> list[list[str]]:
    """Put names into shards of at most `most` bytes, in their order; one that is larger stands alone.

    Example:
        >>> split({"a": 4, "b": 3, "c": 2, "d": 9, "e": 1}, 7)
        [['a', 'b'], ['c'], ['d'], ['e']]
    """
    shards: list[list[str]] = [[]]
    room = most
    for name, size in sizes.items():
        if room is not None and most is not None:
            if shards[-1] and size > room:
                shards.append([])
                room = most
            room -= size
        shards[-1].append(name)
    return shards


def file_names(stem: str, count: int) -> list[str]:
    """Return the names of `count` shards.

    Example:
        >>> file_names("model", 1), file_names("model", 2)
        (['model.safetensors'], ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors'])
    """
    if count == 1:
        return [f"{stem}{SUFFIX}"]
    return [f"{stem}-{number:05d}-of-{count:05d}{SUFFIX}" for number in range(1, count + 1)]


def index_text(shards: Mapping[str, list[str]], total: int, metadata: Mapping[str, Any]) -> str:
    """Return the JSON of an index: which file holds which tensor."""
    places = {name: file for file, names in shards.items() for name in names}
    content = {"metadata": {"total_size": total, **metadata}, "weight_map": dict(sorted(places.items()))}
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def is_of(stem: str, file: str) -> bool:
    """Tell whether a file is one of the checkpoint `stem`: whole, a shard, or the index.

    Example:
        >>> [is_of("model", f"model{end}") for end in (".safetensors", "-00001-of-00002.safetensors", INDEX)]
        [True, True, True]
        >>> is_of("model", "model-ema.safetensors")
        False
    """
    number = r"\d{5,}"
    return bool(
        re.fullmatch(rf"{re.escape(stem)}((-{number}-of-{number})?{re.escape(SUFFIX)}|{re.escape(INDEX)})", file)
    )
