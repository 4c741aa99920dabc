"""What a `.pt` holds beside tensors, as JSON: numbers, texts, and small lists and dicts of them.

Owns: what goes along into the metadata of a new file. Must not choose tensors: that is `shrink.py`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, cast

VALUES = "values"
MOST_PARTS = 1000
MOST_TEXT = 1 << 14
MOST_DEPTH = 8


def as_json(beside: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of some values that JSON gives back as they are, but for tuples, which become lists.

    Law: `json.loads(json.dumps(found)) == found`. What is large is left out, however often it holds itself.

    Example:
        >>> as_json({"epoch": 3, "args": {"lr": 0.1}, "best": float("nan"), "raw": b"x", "shape": (3, 4)})
        {'epoch': 3, 'args': {'lr': 0.1}, 'shape': [3, 4]}
    """
    found: dict[str, Any] = {}
    left = MOST_TEXT
    for name, value in beside.items():
        budget = [MOST_PARTS]
        try:
            plain = _plain(value, budget, MOST_DEPTH)
            length = len(json.dumps({name: plain}))
        except (ValueError, TypeError):
            continue
        if length <= left:
            found[name] = plain
            left -= length
    return found


def _plain(value: Any, budget: list[int], depth: int) -> Any:
    budget[0] -= 1 + (len(value) >> 6 if isinstance(value, str) else 0)
    if budget[0] < 0 or depth < 0:
        raise ValueError
    if value is None or isinstance(value, bool | str):
        if isinstance(value, str):
            value.encode()
        return value
    if type(value) is int and abs(value) < 1 << 53:
        return value
    if type(value) is float and math.isfinite(value):
        return value
    if type(value) is dict and all(isinstance(key, str) for key in cast(dict[Any, Any], value)):
        return {_plain(key, budget, 0): _plain(one, budget, depth - 1) for key, one in cast(Any, value).items()}
    if isinstance(value, list | tuple):
        value = cast(list[Any], value)
        return [_plain(one, budget, depth - 1) for one in value]
    raise TypeError
