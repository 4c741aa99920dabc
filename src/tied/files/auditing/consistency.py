"""What is promised of a checkpoint and not so: by its ledger, its index, or the configuration beside it.

Owns: the comparison of words with what is stored. Must not word findings: that is `audit.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from tied.files.auditing.compare import same_bytes, same_elements
from tied.files.reading.checkpoint import Checkpoint
from tied.files.reading.stored import Stored
from tied.files.reading.transformers_config import Configuration

if TYPE_CHECKING:
    from tied.files.reading.file_ledger import Equation

HEADS = re.compile(r"(^|\.)(lm_head|embed_out|output_layer|output)\.weight$|predictions\.decoder\.weight$")
EMBEDDINGS = re.compile(
    r"(^|\.)(embed_tokens|wte|word_embeddings|embed_in|tok_embeddings|token_embd|shared|embeddings\.word_embeddings)\.weight$"
)
_NAME = re.compile(r"[\w-]+(\.[\w-]+)+")


class Absent(NamedTuple):
    """A name that is promised and not there: who promises it, and what is said of it."""

    name: str
    promise: str


def holds(tie: Equation, stored: Mapping[str, Stored]) -> bool:
    """Tell whether a target that is stored has the value that its source gives: bit for bit if it only moves."""
    from tied.algebra import Ref
    from tied.algebra.projection import agree

    target = stored[tie.target]
    if isinstance(tie.source, Ref):
        source = stored[tie.names[0]]
        return (source.dtype, source.shape) == (target.dtype, target.shape) and _same(source, target)
    value, wanted = tie.restore(lambda name: stored[name].tensor()), target.tensor()
    return value.dtype == wanted.dtype and agree(value, wanted, tie.source)


def _same(one: Stored, other: Stored) -> bool:
    words, others = one.words(), other.words()
    contiguous = words.flags.c_contiguous and others.flags.c_contiguous
    return same_bytes(words, others) if contiguous else same_elements(words, others)


def absent(checkpoint: Checkpoint) -> list[Absent]:
    """Return the names that an index, or the metadata of safetensors' `save_model`, promise in vain."""
    found: list[Absent] = []
    if checkpoint.index:
        places = checkpoint.index.places.items()
        found += [
            Absent(name, f"the index places it in {file}") for name, file in places if name not in checkpoint.tensors
        ]
    stored = checkpoint.tensors
    for name, kept in (checkpoint.metadata or {}).items():
        alike = _NAME.fullmatch(name) and _NAME.fullmatch(kept) and name.split(".")[-1] == kept.split(".")[-1]
        if alike and name not in stored and kept not in stored:
            found.append(Absent(name, f"the header says that it is {kept}, which is not there either"))
    return found


def unlisted(checkpoint: Checkpoint) -> list[tuple[str, str]]:
    """Return the shards and the names that they hold though the index does not lead there."""
    if not checkpoint.index:
        return []
    used = {path: file for file, path in checkpoint.index.files.items()}
    places = checkpoint.index.places
    return [
        (used[one.path], name) for one in checkpoint.files for name in one.tensors if places.get(name) != used[one.path]
    ]


def head_and_embedding(tensors: Mapping[str, Stored], vocabulary: int) -> tuple[str | None, str | None]:
    """Return the names of the head and of the input embedding, where each is one that is certain."""
    found: list[str | None] = []
    for pattern in (HEADS, EMBEDDINGS):
        names = [name for name, one in tensors.items() if pattern.search(name) and _is_of(one, vocabulary)]
        found.append(names[0] if len(names) == 1 else None)
    return found[0], found[1]


def _is_of(stored: Stored, vocabulary: int) -> bool:
    return len(stored.shape) == 2 and (not vocabulary or stored.shape[0] == vocabulary)


def lost_head(tensors: Mapping[str, Stored], configuration: Configuration) -> bool:
    """Tell whether the only matrix over the vocabulary is the embedding, though the head is said to be another one."""
    vocabulary = configuration.vocabulary
    over = [name for name, one in tensors.items() if len(one.shape) == 2 and vocabulary in one.shape]
    return (
        configuration.ties is False and configuration.has_head and len(over) == 1 and bool(EMBEDDINGS.search(over[0]))
    )


def same_values(one: Stored, other: Stored) -> bool:
    """Tell whether two tensors have one dtype, one shape and the same bits."""
    if (one.dtype, one.shape) != (other.dtype, other.shape) or not (one.plain and other.plain):
        return False
    return _same(one, other) if one.nbytes else True
