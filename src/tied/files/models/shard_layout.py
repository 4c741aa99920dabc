"""Checkpoints of several files: which tensor goes where, under which names, and what the index says.

Owns: the names and the index that transformers and others know. Must not open files. Read next: `save.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from tied.errors import KindError

SUFFIX = ".safetensors"
INDEX = f"{SUFFIX}.index.json"
UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12} | {
    f"{letter}IB": 1 << 10 * power for power, letter in enumerate("KMGT", 1)
}


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
