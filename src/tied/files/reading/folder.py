"""Folders of shards: which file a path means, and the index that says where each tensor lies.

Owns: `*.index.json`, and that no index leads out of its folder. Must not open shards. Read next: `checkpoint.py`.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tied.errors import FileError, short
from tied.files.reading.refusal import AGAIN, SPLIT, refuse, shown
from tied.files.reading.regular_file import open_regular
from tied.files.reading.strict_json import check_amount

MOST_BYTES = 1 << 25
MOST_NAMES = 200_000
MOST_SHARDS = 2_000
USUAL = ("*.safetensors.index.json", "*.safetensors", "*.bin.index.json", "*.bin", "*.pt", "*.pth", "*.ckpt")
INDEXED = ".index.json"
FIRST = (  # in the order in which transformers, and for its own name diffusers, look for them
    "model.safetensors",
    "model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


@dataclass(frozen=True)
class Index:
    """An index, checked.

    Attributes:
        places: The shard of each tensor, by name.
        files: The paths of the shards by the names that the index uses, in the order of their first use.
        metadata: The texts of its metadata; `None` where it has none.
        content: All of it, as it was read.
    """

    places: Mapping[str, str]
    files: Mapping[str, Path]
    metadata: Mapping[str, str] | None
    content: Mapping[str, Any]


def find_checkpoint(path: Path) -> Path:
    """Return the file that is meant: `path` itself, or in a folder what `from_pretrained` would read, or the only one.

    Raises:
        FileError: A folder holds none, or several and no index.
    """
    if not path.is_dir():
        return path
    usual = next((path / name for name in FIRST if (path / name).is_file()), None)
    if usual:
        return usual
    for pattern in USUAL:
        found = sorted(path.glob(pattern))
        if len(found) == 1:
            return found[0]
        if found:
            names = short(", ".join(shown(one.name) for one in found))
            refuse(path, "Several checkpoints lie in this folder.", names, "one, or an index", "name the file")
    if (path / ".metadata").is_file():
        convert = "python -m torch.distributed.checkpoint.format_utils dcp_to_torch"
        fix = f"{convert} {shlex.quote(str(path))} model.pt, then name model.pt"
        refuse(path, "It is a distributed checkpoint.", "a folder of chunks", " or ".join(USUAL), fix)
    refuse(path, "No checkpoint lies in this folder.", "no file of a known kind", " or ".join(USUAL), "name the file")


def holds_checkpoint(path: Path) -> bool:
    """Whether a folder holds a file that looks like a checkpoint: one, several, or chunks of a distributed one."""
    return any(next(path.glob(pattern), None) for pattern in USUAL) or (path / ".metadata").is_file()


def twin(path: Path) -> Path | None:
    """Return the index beside a file of its name, or the file beside its index: a reader takes one of the two.

    Example:
        >>> twin(Path("nowhere/model.safetensors")) is None
        True
    """
    name = path.name.removesuffix(INDEXED)
    other = path.with_name(name if name != path.name else name + INDEXED)
    return other if other.is_file() else None


def read_index(path: Path) -> Index:
    """Read an index and find its shards.

    A shard lies in the folder of the index. A symbolic link may lead to another file of that folder, or to the
    `blobs` beside `snapshots`, as Hugging Face's cache lays them.

    Raises:
        FileError: It is not an index, or it leads elsewhere, or a shard is missing.
        OSError: It cannot be opened.
    """
    content = _read_json(path)
    places = content.get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(v, str) for v in cast(dict[str, Any], places).values()):
        refuse(path, "It has no weight_map.", _kind(places), "an object: the file of each tensor", AGAIN)
    places = cast(dict[str, str], places)
    shards = dict.fromkeys(places.values())
    if len(places) > MOST_NAMES or len(shards) > MOST_SHARDS:
        found = f"{len(places)} names in {len(shards)} files"
        refuse(path, "It is too long.", found, f"at most {MOST_NAMES} in {MOST_SHARDS}", SPLIT)
    metadata = content.get("metadata")
    if not isinstance(metadata, dict | None):
        refuse(path, "Its metadata is no object.", _kind(metadata), "an object", AGAIN)
    texts = None if metadata is None else {k: v for k, v in cast(dict[str, Any], metadata).items() if type(v) is str}
    files = {shard: _shard(path, shard) for shard in shards}
    _refuse_twins(path, files)
    return Index(places, files, texts, content)


def _read_json(path: Path) -> dict[str, Any]:
    with open_regular(path) as stream:
        raw = stream.read(MOST_BYTES + 1)
    if len(raw) > MOST_BYTES:
        refuse(path, "It is too long for an index.", f"more than {MOST_BYTES} bytes", f"at most {MOST_BYTES}", SPLIT)
    try:
        text = raw.decode()
        check_amount(text, path)
        content = json.loads(text, object_pairs_hook=_each_once)
    except FileError:
        raise
    except (ValueError, RecursionError) as error:
        refuse(path, "It is not the JSON of an index.", short(ascii(str(error))), "JSON, each key once", AGAIN)
    if not isinstance(content, dict):
        refuse(path, "It is not an index.", _kind(content), "a JSON object", AGAIN)
    return cast(dict[str, Any], content)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice")
    return found


def _shard(index: Path, name: str) -> Path:
    path = index.parent / name
    if not name or name in (".", "..") or re.search(r"[/\\\0:]", name):
        found, expected = shown(name), "the name of a file in the same folder"
        refuse(index, "It leads out of its folder.", found, expected, "do not use this file: nobody writes such names")
    if not path.is_file():
        refuse(index, "A shard is missing.", f"no file {shown(name)}", "all its shards beside it", AGAIN)
    folder, real = index.parent.resolve(), path.resolve()
    if real.parent not in (folder, folder.parent.parent / "blobs"):
        found = f"{shown(name)} is a link to {shown(real)}"
        refuse(index, "A shard leads out of its folder.", found, "a file in this folder", "copy the file here")
    return path


def _refuse_twins(index: Path, files: Mapping[str, Path]) -> None:
    """Refuse one file under many names, which would be read as often."""
    first: dict[tuple[int, int], str] = {}
    for name, path in files.items():
        status = path.stat()
        known = first.setdefault((status.st_dev, status.st_ino), name)
        if known != name:
            found = f"{shown(known)} and {shown(name)}"
            refuse(index, "Two of its shards are one file.", found, "a file for each", AGAIN)


def _kind(value: object) -> str:
    return "none" if value is None else type(value).__name__
