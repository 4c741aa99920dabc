"""Addresses: text that names a tensor or module in a model, as a tuple of segments.

Owns: the one way to print an address. Must not know the model. Read next: `parser.py`, which reads them.

    ("layers", "0", "weight")  <->  "layers.0.weight"
    ("blocks", "my block")     <->  'blocks["my block"]'

A segment that would be read as something else (a transform's name, a number, spaces) is quoted in
brackets, so that printed addresses are unambiguous without a model.
"""

from __future__ import annotations

import json
import re

from tied.algebra.transform import METHODS

Address = tuple[str, ...]

NUMBER = re.compile(r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?(?!\w|\.\w)")
WORD = re.compile(r"\w+")
STRING = re.compile(r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\'')


def show_address(address: Address) -> str:
    """Print an address so that the parser reads the same address back."""
    if not address:
        return "the model itself"
    first, *rest = address
    text = first if WORD.fullmatch(first) else _quoted(first)
    for segment in rest:
        plain = WORD.fullmatch(segment) and segment not in METHODS
        text += f".{segment}" if plain else _quoted(segment)
    is_word = first != "None" and not NUMBER.fullmatch(text)
    return text if is_word else _quoted(first) + text[len(first) :]


def address_of(path: str) -> Address:
    """Return the address that a name of torch's means, such as those of `named_modules`; "" is the model itself."""
    return tuple(path.split(".")) if path else ()


def _quoted(segment: str) -> str:
    return f"[{json.dumps(segment, ensure_ascii=False)}]"
