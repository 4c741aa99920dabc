"""Expanding: every name is stored again, for readers that know no ledger.

Owns: the undoing of `shrink.py`. Must not write by itself (`rewrite.py`). Read next: `repair.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

from tied.algebra import Ref
from tied.errors import during
from tied.files.reading.file_ledger import KEY, Equation
from tied.files.reading.pt_file import PickledTensor
from tied.files.reading.refusal import shown
from tied.files.reading.stored import Stored, Words
from tied.files.rewriting.expanded_view import Expansion
from tied.files.rewriting.rewrite import NewFile, Piece, Rewrite, Tell, in_data_order, silent, unsafe
from tied.files.rewriting.shrink import SHRUNK, Rewritten


def expand(path: str | Path, target: str | Path, *, tell: Tell = silent) -> Rewritten:
    """Write a checkpoint anew with every tensor that its ledger restores.

    Law: `expand` of what `shrink` made is the original again: tensors, names, dtypes, order and metadata, bit for
    bit. Ties that a model declared stay declared; copies that `shrink` found are forgotten.

    Args:
        path: A safetensors file, an index of shards, or a folder that holds one of them. It is not changed.
        target: The new file; for a folder of shards, the new folder.
        tell: Told how far it is.

    Raises:
        FileError: The old checkpoint or its ledger is broken; or something stands at `target`.
        OSError: The new one cannot be written; nothing is left of it.
    """
    with during(f"expand({str(path)!r}, {str(target)!r})"):
        plan = _Plan(Expansion.open(path))
        after = plan.rewrite().write(Path(target), lambda _: None, tell)
        return Rewritten(plan.lines(), sum(stored.nbytes for stored in plan.found.stored.values()), after)


class _Plan:
    """Which name goes into which file."""

    def __init__(self, found: Expansion) -> None:
        self.found, self.checkpoint = found, found.checkpoint
        if self.checkpoint.kind == "torch" or any(one.header is None for one in self.checkpoint.files):
            raise unsafe(
                self.checkpoint.path, "A .pt has no ledger.", found="a .pt", fix="tied shrink makes safetensors of it"
            )
        self.places = in_data_order(self.checkpoint)
        index = self.checkpoint.index
        self.before: Mapping[str, Any] = cast(Any, index.content.get(SHRUNK) or {}) if index else {}
        self.missing = found.ledger.missing(self.places) if found.ledger else {}

    def rewrite(self) -> Rewrite:
        """Return the new checkpoint."""
        files = [one.path.name for one in self.checkpoint.files]
        known = self.before.get("weight_map")
        moved = cast(dict[str, str], known) if isinstance(known, dict) else {}
        places = {name: self.places.get(name) or moved.get(name) for name in self.order()}
        places = {name: place if place in files else files[-1] for name, place in places.items()}
        new = [
            NewFile(
                file, {name: self.piece(name) for name, place in places.items() if place == file}, self.metadata(number)
            )
            for number, file in enumerate(files)
        ]
        return Rewrite(new, self.index(places))

    def order(self) -> list[str]:
        """Return all names in the order of the expanded file."""
        return self.found.ledger.order(self.places) if self.found.ledger else list(self.places)

    def piece(self, name: str) -> Piece:
        if name in self.places:
            return Piece.of(self.checkpoint.tensors[name])
        tie = self.missing[name]
        return Piece(tie.dtype, tie.shape, partial(_restored, tie, self.checkpoint.tensors, self.checkpoint.path))

    def metadata(self, number: int) -> Mapping[str, str] | None:
        """Return the metadata of a file: its own, without what is undone."""
        header = self.checkpoint.files[number].header
        assert header
        return header.metadata if self.checkpoint.index else self.said(header.metadata)

    def said(self, metadata: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """Return metadata with the ledger that remains."""
        ledger = self.found.ledger
        if ledger is None or KEY not in (metadata or {}):
            return None if metadata is None else dict(metadata)
        remains = ledger.expanded()
        others = {key: text for key, text in (metadata or {}).items() if key != KEY}
        if remains:
            return {key: remains.to_text() if key == KEY else text for key, text in (metadata or {}).items()}
        return None if ledger.bare else others

    def index(self, places: Mapping[str, str]) -> tuple[str, Mapping[str, Any]] | None:
        """Return the index with every name in it."""
        index = self.checkpoint.index
        if index is None:
            return None
        content = {key: value for key, value in index.content.items() if key != SHRUNK}
        if "metadata" in self.before:
            content["metadata"] = self.before["metadata"]
        if "metadata" in content:
            now = self.said(cast(Any, index.content.get("metadata"))) or {}
            then = cast("dict[str, Any] | None", content["metadata"])
            content["metadata"] = then if KEY not in now else {**(then or {}), KEY: now[KEY]}
        if content.get("metadata", 0) is None:
            del content["metadata"]
        content["weight_map"] = {name: places[name] for name in self.names_of_index(places)}
        return self.checkpoint.path.name, content

    def names_of_index(self, places: Mapping[str, str]) -> list[str]:
        """Return all names as the old index had them: sorted, if it was."""
        assert self.checkpoint.index
        known = list(self.checkpoint.index.places)
        return sorted(places) if known == sorted(known) else list(places)

    def lines(self) -> tuple[str, ...]:
        """Say what is back."""
        said = [f"restored {shown(name)}, which is {shown(str(tie.source))}" for name, tie in self.missing.items()]
        return tuple(said) or ("every name is stored: the new file holds what the old one does",)


def _restored(tie: Equation, stored: Mapping[str, Stored], path: Path) -> Words:
    if isinstance(tie.source, Ref):  # also where torch has no such dtype
        return stored[tie.names[0]].words()
    return PickledTensor.of(tie.restore(lambda name: stored[name].tensor()), path).words()
