"""Shrinking: what a checkpoint stores twice is stored once, and the header says how to get it back.

Owns: the choice of what goes. Must not search (`files/auditing/inspection.py`) nor write (`rewrite.py`).
Read next: `expand.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np

from tied.algebra import Ref
from tied.errors import during
from tied.files.auditing.compare import same_bytes, same_elements
from tied.files.auditing.consistency import head_and_embedding
from tied.files.auditing.duplicates import IDENTITY
from tied.files.auditing.inspection import Inspection, inspect
from tied.files.reading.dtypes import BITS, torch_dtype
from tied.files.reading.file_ledger import KEY, Equation, Kind, Ledger, name_of, reference, source_of
from tied.files.reading.inert import Inert, Named
from tied.files.reading.pt_file import PickledTensor
from tied.files.reading.refusal import refuse, shown
from tied.files.reading.stored import OneFile, Stored
from tied.files.rewriting.plain_values import VALUES, as_json
from tied.files.rewriting.rewrite import NewFile, Piece, Rewrite, Tell, in_data_order, silent, unsafe
from tied.reporting.text import size_text

SHRUNK = "shrunk"  # the key of an index under which stands what it said of the tensors that went
MOST_SAID = 20
NESTED = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights", "params", "policy")


@dataclass(frozen=True)
class Rewritten:
    """What was done, and what it saved.

    Attributes:
        lines: One for each thing done.
        before: Bytes of all tensors of the old checkpoint.
        after: Bytes of the new files.
    """

    lines: tuple[str, ...]
    before: int
    after: int


def shrink(path: str | Path, target: str | Path, *, tell: Tell = silent) -> Rewritten:
    """Write a checkpoint anew without what it stores twice.

    Law: `expand` of the result gives the tensors of the original, bit for bit, under their names, in their order,
    with the metadata; and byte for byte the original file, if that was written as safetensors writes it.

    Exact copies go, transposed ones, and rows of larger tensors; of a `.pt` also what lies in the storage of another
    tensor. The ledger in the header says of each what it is. Before the new file takes its place, every
    tensor of the old one is got back from it and compared.

    Args:
        path: A safetensors file, an index of shards, a folder, or a `.pt`. It is not changed.
        target: The new file; for a folder of shards, the new folder.
        tell: Told how far it is.

    Raises:
        FileError: The old checkpoint is broken, or holds what safetensors cannot; or something stands at `target`.
        OSError: The new one cannot be written; nothing is left of it.

    Example:
        >>> import tempfile, torch
        >>> from safetensors.torch import save_file
        >>> folder, weight = Path(tempfile.mkdtemp()), torch.rand(64, 32)
        >>> save_file({"embed": weight, "head": weight.T.contiguous()}, folder / "a.safetensors")
        >>> print(*shrink(folder / "a.safetensors", folder / "b.safetensors").lines)
        dropped 'head', which is 'embed.T': 8.0 KiB
    """
    with during(f"shrink({str(path)!r}, {str(target)!r})"):
        seen = inspect(path)
        plan = _Plan(seen)
        rewrite = plan.rewrite()
        after = rewrite.write(Path(target), plan.prove, tell)
        return Rewritten(tuple(plan.lines()), sum(stored.nbytes for stored in seen.checkpoint.tensors.values()), after)


class _Plan:
    """What goes, what stays, and under which names."""

    def __init__(self, seen: Inspection) -> None:
        self.seen, self.checkpoint = seen, seen.checkpoint
        self.old = self.checkpoint.tensors
        _refuse_unclear(seen)
        self.left_out = seen.storages.training if seen.storages else frozenset[str]()
        self.places = {name: file for name, file in in_data_order(self.checkpoint).items() if name not in self.left_out}
        self.prefix = _usual_key(self.places, self.checkpoint.files)
        self.new = {self.named(name): name for name in self.places}  # each with the old name
        self.ties = self.declared()
        ledger = seen.ledger
        self.at = {name: at for at, name in enumerate(ledger.order(self.new) if ledger else self.new)}
        both = [t for t in self.ties if set(t.names) <= self.old.keys() and t.target not in self.needed_by_config()]
        self.gone = {tie.target: tie for tie in [*both, *self.found()] if tie.target in self.new}

    def declared(self) -> list[Equation]:
        """Return the equations that the file has already."""
        ledger = self.seen.ledger
        ties = list(ledger.ties) if ledger else []
        lost = [
            tie
            for tie in ties
            if tie.target in self.old and set(tie.names) <= self.old.keys() and not self.is_exact(tie)
        ]
        if lost:
            problem, fix = "It declares ties that hold up to rounding only.", "leave it expanded"
            raise unsafe(self.checkpoint.path, problem, found=shown(lost[0].target), fix=fix)
        return ties

    def is_exact(self, tie: Equation) -> bool:
        return _gives(tie, self.old, self.old[tie.target])

    def found(self) -> Iterator[Equation]:
        """Yield an equation for each tensor that can go: its source stays."""
        stays = {name for tie in self.ties for name in tie.names} | self.needed_by_config()
        goes = {tie.target for tie in self.ties}
        for name, source, transform, kind in [*self.shared(), *self.candidates(stays)]:
            if name in stays or name in goes or source in goes or not _can_be_told(self.old[name], transform):
                continue
            goes.add(name)
            stays.add(source)
            stored, text = self.old[name], f"{reference(self.named(source))}{transform}"
            yield Equation(self.named(name), source_of(text), stored.dtype, stored.shape, kind)

    def shared(self) -> Iterator[tuple[str, str, str, Kind]]:
        """Yield what lies in the storage of another tensor: the name, the other, what it is of it."""
        for name, expression in self.seen.storages.shared.items() if self.seen.storages else ():
            (address,) = expression.sources()
            if name in self.places:
                yield name, name_of(address), str(expression)[len(str(reference(name_of(address)))) :], "tie"

    def candidates(self, stays: Set[str]) -> Iterator[tuple[str, str, str, Kind]]:
        """Yield the copies that were found, each with the one that stays; copies of rows are rows too."""
        rows = {one.part: one for one in self.seen.rows}
        for part, one in rows.items():
            yield part, one.whole, one.transform, "copy"
        for copies in self.seen.copies:
            known = zip(copies.names, copies.transforms, strict=True)
            source = next((name for name, how in known if name in stays and how == IDENTITY), copies.names[0])
            part = rows.get(source)
            for name, how in zip(copies.names, copies.transforms, strict=True):
                moved = "" if how == IDENTITY else how
                if name != source and part and source not in stays:
                    yield name, part.whole, part.transform + moved, "copy"
                elif name != source:
                    yield name, source, moved, "copy"

    def needed_by_config(self) -> set[str]:
        """Return head and embedding where config.json unties them: its reader would draw a missing one at random."""
        config = self.seen.configuration
        if config is None or config.ties is not False:
            return set()
        return {name for name in head_and_embedding(self.old, config.vocabulary) if name}

    def named(self, name: str) -> str:
        return name.removeprefix(self.prefix)

    # -- what is written

    def ledger(self) -> Ledger:
        """Return what the new checkpoint says of what is not in it."""
        ties = {tie.target: tie for tie in self.ties} | self.gone
        placed = tuple(replace(tie, at=self.at.get(tie.target)) for tie in ties.values())
        return Ledger("compact", placed, self.checkpoint.metadata is None and self.seen.storages is None)

    def rewrite(self) -> Rewrite:
        """Return the new checkpoint."""
        ledger = self.ledger()
        said = {KEY: ledger.to_text()} if self.gone else {}
        sharded = self.checkpoint.index is not None
        files: list[NewFile] = []
        for one in self.checkpoint.files:
            held = {
                new: old for new, old in self.new.items() if self.places[old] == one.path.name and new not in self.gone
            }
            metadata = one.header.metadata if one.header else {"format": "pt", **self.values(one)}
            metadata = metadata if sharded or not said else {**(metadata or {}), **said}
            files.append(
                NewFile(_safetensors_name(one.path), {n: Piece.of(self.old[o]) for n, o in held.items()}, metadata)
            )
        return Rewrite(files, self.index(files, said) if sharded else None)

    def values(self, file: OneFile) -> dict[str, str]:
        """Return what goes along into the metadata of a file."""
        others = self.seen.storages.others if self.seen.storages else {}
        kept = as_json({name: value for name, value in file.beside.items() if name in others})
        return {VALUES: json.dumps(kept)} if kept else {}

    def index(self, files: list[NewFile], said: Mapping[str, str]) -> tuple[str, Mapping[str, object]]:
        assert self.checkpoint.index
        content = dict(self.checkpoint.index.content)
        names = {one.path.name: file.name for one, file in zip(self.checkpoint.files, files, strict=True)}
        gone = {name: names[self.places[self.new[name]]] for name in self.gone}
        if said:
            metadata = dict(content.get("metadata") or {})
            content[SHRUNK] = {"weight_map": gone, "metadata": content.get("metadata")}
            total = sum(file.header.data_bytes for file in files)
            content["metadata"] = {**metadata, "total_size": total, **said}
        weight_map = {new: names[self.places[old]] for new, old in self.in_index_order() if new not in self.gone}
        content["weight_map"] = weight_map
        return _safetensors_name(self.checkpoint.path), content

    def in_index_order(self) -> Iterable[tuple[str, str]]:
        order = {name: place for place, name in enumerate(self.old)}
        return sorted(self.new.items(), key=lambda item: order[item[1]])

    def prove(self, written: Mapping[str, Stored]) -> None:
        """Get back every tensor that went, and compare it with the original."""
        for name, tie in self.gone.items():
            if not _gives(tie, written, self.old[self.new[name]]):
                found, expected = "other bits", f"what {shown(str(tie.source))} gives"
                refuse(
                    self.checkpoint.path,
                    f"{shown(name)} would be lost.",
                    found=found,
                    expected=expected,
                    fix="report this",
                )

    def lines(self) -> Iterator[str]:
        for name, tie in self.gone.items():
            size = size_text(self.old[self.new[name]].nbytes)
            yield f"dropped {shown(name)}, which is {shown(str(tie.source))}: {size}"
        yield from left_out(self.seen)
        if not self.gone:
            yield "nothing is stored twice: the new file holds what the old one does"


def left_out(seen: Inspection) -> Iterator[str]:
    """Say what of a `.pt` no safetensors file holds."""
    storages = seen.storages
    if storages and storages.training:
        count = len(storages.training)
        yield f"left out {count} tensor{'s' if count > 1 else ''} of the training's state"
    kept = as_json(storages.others) if storages else {}
    if kept:
        yield f"kept as JSON in the metadata: {few(map(shown, kept))}"
    if storages and len(kept) < len(storages.others):
        named = (
            f"{shown(name)} ({shown(value.kind)[1:-1]})" if isinstance(value, Inert | Named) else shown(name)
            for name, value in storages.others.items()
            if name not in kept
        )
        yield f"left out what is no tensor: {few(named)}"


def few(said: Iterable[str]) -> str:
    """Write some at most of what may be many."""
    first = list(islice(said, MOST_SAID + 1))
    return ", ".join(first[:MOST_SAID]) + (", ..." if len(first) > MOST_SAID else "")


def _refuse_unclear(seen: Inspection) -> None:
    """Refuse what cannot be shrunk without choosing, or without losing something."""
    path = seen.checkpoint.path
    if seen.broken:
        raise seen.broken
    if seen.drifted:
        found = f"{shown(seen.drifted[0].target)} is not {shown(str(seen.drifted[0].source))}"
        raise unsafe(path, "It declares a tie that does not hold.", found=found, fix="tied repair, then shrink")
    for name, stored in seen.checkpoint.tensors.items():
        unseen = seen.storages is not None and name in seen.storages.unseen
        if stored.dtype not in BITS or unseen:
            if seen.storages and name in seen.storages.training:
                continue
            fix = "load it, make its tensors plain, and save it again"
            raise unsafe(path, f"Safetensors cannot hold {shown(name)}.", found=stored.dtype, fix=fix)


def _gives(tie: Equation, stored: Mapping[str, Stored], wanted: Stored) -> bool:
    """Tell whether an equation gives a tensor, bit for bit."""
    if isinstance(tie.source, Ref):
        source = stored[tie.names[0]].words()
        if stored[tie.names[0]].dtype != wanted.dtype or source.shape != wanted.words().shape:
            return False
        return same_bytes(np.ascontiguousarray(source), np.ascontiguousarray(wanted.words()))
    value = PickledTensor.of(tie.restore(lambda name: stored[name].tensor()), wanted.file)
    return (value.dtype, value.shape) == (wanted.dtype, wanted.shape) and same_elements(value.words(), wanted.words())


def _can_be_told(stored: Stored, transform: str) -> bool:
    """Tell whether torch can apply a transform to this dtype; any can be copied."""
    return not transform or (torch_dtype(stored.dtype) is not None and BITS[stored.dtype] >= 8)


def _usual_key(names: Mapping[str, str], files: Sequence[OneFile]) -> str:
    """Return the usual key under which all tensors of a `.pt` are nested, with its dot.

    A flat state dict may have names that all begin so, and keeps them.
    """
    tree = files[0].loaded if len(files) == 1 else None
    inside = cast("Mapping[Any, Any]", tree) if isinstance(tree, Mapping) else {}
    nested = (f"{key}." for key in NESTED if isinstance(inside.get(key), Mapping))
    return next((prefix for prefix in nested if names and all(name.startswith(prefix) for name in names)), "")


def _safetensors_name(path: Path) -> str:
    name = path.name.removesuffix(".index.json")
    stem = name if name.endswith(".safetensors") else f"{Path(name).stem}.safetensors"
    return stem + (".index.json" if path.name.endswith(".index.json") else "")
