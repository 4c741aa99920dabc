"""The `config.json` of transformers beside a checkpoint, as far as it speaks of tied weights.

Owns: what is known of it here. Must not import transformers. Read next: `files/auditing/consistency.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tied.errors import FileError
from tied.files.reading.regular_file import open_regular
from tied.files.reading.strict_json import check_amount

NAME = "config.json"
MOST_BYTES = 1 << 22
NESTED = ("text_config", "decoder", "language_config", "llm_config")


@dataclass(frozen=True)
class Configuration:
    """What a configuration says.

    Attributes:
        path: Where it lies.
        ties: Whether head and embedding are one; None where it leaves that to the class.
        vocabulary: The number of tokens, or 0.
        has_head: Whether the model is one of those that predict tokens.
    """

    path: Path
    ties: bool | None
    vocabulary: int
    has_head: bool


def read_configuration(folder: Path) -> Configuration | None:
    """Read the configuration in a folder; None where there is none, or none that can be read."""
    path = folder / NAME
    try:
        with open_regular(path) as stream:
            text = stream.read(MOST_BYTES).decode()
        check_amount(text, path)
        content = json.loads(text)
    except (FileError, OSError, ValueError, RecursionError):
        return None
    if not isinstance(content, dict):
        return None
    found = cast(dict[str, Any], content)
    inner = next((found[key] for key in NESTED if isinstance(found.get(key), dict)), found)
    ties = next((one["tie_word_embeddings"] for one in (found, inner) if "tie_word_embeddings" in one), None)
    vocabulary = next((one["vocab_size"] for one in (found, inner) if "vocab_size" in one), 0)
    return Configuration(
        path=path,
        ties=ties if isinstance(ties, bool) else None,
        vocabulary=vocabulary if type(vocabulary) is int and vocabulary > 1 else 0,
        has_head=_predicts_tokens(found),
    )


def _predicts_tokens(content: Mapping[str, Any]) -> bool:
    names = content.get("architectures")
    classes = [str(name) for name in cast(list[Any], names)] if isinstance(names, list) else []
    return any(name.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")) for name in classes)
