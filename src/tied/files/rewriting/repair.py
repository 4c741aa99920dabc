"""Repairing: each defect that an audit names is mended, or the reason is said why it cannot be.

Owns: the choice of what is right. Must not search (`files/auditing/inspection.py`) nor write (`rewrite.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from tied.algebra import Address
from tied.algebra.projection import invert, project
from tied.errors import FileError, TieError, during
from tied.files.auditing.consistency import absent, head_and_embedding, holds, lost_head, same_values, unlisted
from tied.files.auditing.inspection import Inspection, inspect
from tied.files.reading.file_ledger import KEY, MOST_TIES, VERSION, Equation, Ledger, name_of, read_ledger, reference
from tied.files.reading.pt_file import PickledTensor
from tied.files.reading.refusal import shown
from tied.files.reading.stored import Stored
from tied.files.reading.strict_json import check_amount
from tied.files.rewriting.rewrite import NewFile, Piece, Rewrite, Tell, in_data_order, silent, unsafe
from tied.files.rewriting.shrink import Rewritten, shrink
from tied.reporting.text import size_text

Keep = Literal["source", "target", "mean"]
WINNERS = ("source", "target", "mean")


def repair(path: str | Path, target: str | Path, *, keep: Keep | None = None, tell: Tell = silent) -> Rewritten:
    """Write a checkpoint anew in which every promise holds.

    A ledger loses the entries that cannot be; an index names what the shards hold, and nothing else; of two
    values that are declared equal the one that you name wins. Of a `.pt`, shared storage becomes a ledger
    and wasted storage goes. What is stored twice stays: that is for `shrink`.

    Args:
        path: A file, an index, or a folder. It is not changed.
        target: The new file; for a folder of shards, the new folder.
        keep: Whose value wins where a tie does not hold: `"source"`, `"target"` or `"mean"`, the least-squares source.
        tell: Told how far it is.

    Raises:
        FileError: The checkpoint cannot be read; a winner has to be named; or something stands at `target`.
        OSError: The new one cannot be written; nothing is left of it.
    """
    with during(f"repair({str(path)!r}, {str(target)!r})"):
        if keep not in (*WINNERS, None):
            raise FileError("keep is unknown.", found=repr(keep), expected=" or ".join(WINNERS), fix="keep='source'")
        seen = inspect(path)
        if seen.storages:
            wasted = seen.storages.wasted.items()
            lines = [
                f"dropped {size_text(n)} of the storage of {shown(name)} that no tensor shows" for name, n in wasted
            ]
            done = shrink(path, target, tell=tell)
            return replace(done, lines=(*lines, *done.lines))
        plan = _Plan(seen, keep)
        after = plan.rewrite().write(Path(target), plan.prove, tell)
        return Rewritten(tuple(plan.lines), sum(stored.nbytes for stored in plan.old.values()), after)


class _Plan:
    """What is mended, and the lines that say so."""

    def __init__(self, seen: Inspection, keep: Keep | None) -> None:
        self.seen, self.checkpoint, self.keep = seen, seen.checkpoint, keep
        self.old: Mapping[str, Stored] = self.checkpoint.tensors
        self.lines: list[str] = []
        self.places = in_data_order(self.checkpoint)
        self.ledger = self.mended_ledger()
        self.added = self.mended_index()
        self.vain = {each.name for each in absent(self.checkpoint)}
        self.lines += [f"forgot {shown(each.name)}: {each.promise}" for each in absent(self.checkpoint)]
        self.settled = self.settle()
        self.lines += self.left()
        if not self.lines:
            self.lines.append("nothing is wrong: the new file holds what the old one does")

    # -- the ledger

    def mended_ledger(self) -> Ledger | None:
        """Return the ledger without the entries that cannot be."""
        if self.seen.broken is None:
            return self.seen.ledger
        ties: dict[str, Equation] = {}
        for entry in self.entries():
            ledger, why = self.tried([entry])
            tie = ledger.ties[0] if ledger else None
            if tie and tie.target not in ties:
                ties[tie.target] = tie
            else:
                target = cast(dict[str, Any], entry).get("target") if isinstance(entry, dict) else entry
                self.lines.append(f"dropped the tie of {shown(str(target))}: {why or 'another one has this target.'}")
        kept, why = self.tried(list(ties.values())) if ties else (None, "")
        if why:
            self.lines.append(f"dropped the ledger: {why}")
        if not self.lines:
            did = "wrote the ledger anew" if kept else "dropped the ledger"
            self.lines.append(f"{did}: {_reason(self.seen.broken)}")
        return kept

    def entries(self) -> list[Any]:
        """Return what stands in a broken ledger; nothing where it cannot be told apart."""
        text = (self.checkpoint.metadata or {})[KEY]
        try:
            check_amount(text, self.checkpoint.path)
            content = json.loads(text)
        except (FileError, ValueError, RecursionError):
            return []
        if isinstance(content, dict) and cast(dict[str, Any], content).get("version", VERSION) != VERSION:
            return []  # its words may mean something else
        ties = cast(dict[str, Any], content).get("ties") if isinstance(content, dict) else None
        return cast(list[Any], ties) if isinstance(ties, list) and len(cast(list[Any], ties)) <= MOST_TIES else []

    def tried(self, entries: list[Any]) -> tuple[Ledger | None, str]:
        """Read a ledger of these entries in the layout that is true of them."""
        ties = [tie.to_json() if isinstance(tie, Equation) else tie for tie in entries]
        stored = {name: (one.dtype, one.shape) for name, one in self.old.items()}
        why = ""
        for layout in ("compact", "expanded"):
            try:
                text = json.dumps({"version": 1, "layout": layout, "ties": ties})
                return read_ledger({KEY: text}, stored, self.checkpoint.path), ""
            except FileError as error:
                why = why or _reason(error)
        return None, why

    # -- the index

    def mended_index(self) -> dict[str, Stored]:
        """Return the tensors of shards that the index has forgotten."""
        found: dict[str, Stored] = {}
        tensors = {one.path.name: one.tensors for one in self.checkpoint.files}
        for file, name in unlisted(self.checkpoint):
            if name in self.old or name in found:
                self.lines.append(f"dropped {shown(name)} from {shown(file)}: the index leads to another one")
            else:
                found[name] = tensors[file][name]
                self.places[name] = file
                self.lines.append(f"put {shown(name)} on the index: it lies in {shown(file)}")
        return found

    # -- the values

    def conflicts(self) -> Iterator[Equation]:
        """Yield what is said to be equal and is not."""
        yield from (tie for tie in self.ledger.ties if self.is_drifted(tie)) if self.ledger else ()
        pair = self.configured(tied=True)
        if pair and not same_values(*(self.old[name] for name in pair)):
            head, embedding = pair
            dtype, shape = self.old[head].dtype, self.old[head].shape
            if (dtype, shape) == (self.old[embedding].dtype, self.old[embedding].shape):
                yield Equation(head, reference(embedding), dtype, shape)

    def configured(self, *, tied: bool) -> tuple[str, str] | None:
        """Return head and embedding, where config.json says so of them."""
        config = self.seen.configuration
        if config is None or config.ties is not tied:
            return None
        head, embedding = head_and_embedding(self.old, config.vocabulary)
        return (head, embedding) if head and embedding else None

    def is_drifted(self, tie: Equation) -> bool:
        return tie.target in self.old and set(tie.names) <= self.old.keys() and not holds(tie, self.old)

    def settle(self) -> dict[str, Tensor]:
        """Return the new values of names that contradict each other."""
        found: dict[str, Tensor] = {}
        ties = list(self.conflicts())
        if ties and self.keep is None:
            what = f"{shown(ties[0].target)} and {shown(str(ties[0].source))}"
            problem, fix = (
                "Two values are declared equal, and differ.",
                "name the winner: keep='source', 'target' or 'mean'",
            )
            raise unsafe(self.checkpoint.path, problem, found=what, fix=fix)
        if self.keep in ("target", "mean"):
            for tie in ties:
                found |= self.sources_for(tie, found)
        for tie in self.all_ties(ties):
            value = tie.restore(lambda name: self.value(name, found))
            wins = {"source": "its source", "target": "the target", "mean": "the mean"}[self.keep or "source"]
            if tie in ties:
                self.lines.append(f"made {shown(tie.target)} equal to {shown(str(tie.source))}: {wins} won")
            elif not set(tie.names) & found.keys():
                continue
            found[tie.target] = value
        if self.keep == "target":
            self.refuse_overruled(ties, found)
        return found

    def all_ties(self, ties: list[Equation]) -> list[Equation]:
        """Return the conflicts, then every other tie whose target is stored and reads what may change."""
        others = [tie for tie in self.ledger.ties if tie.target in self.old and tie not in ties] if self.ledger else []
        return [*ties, *(tie for tie in others if set(tie.names) <= self.old.keys())]

    def value(self, name: str, found: Mapping[str, Tensor]) -> Tensor:
        return found[name] if name in found else self.old[name].tensor()

    def sources_for(self, tie: Equation, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return sources that give the target, or the mean of both."""
        wide = {address: self.value(name_of(address), found) for address in tie.source.sources()}
        exact: dict[Address, Tensor] = {a: t.double() if t.is_floating_point() else t for a, t in wide.items()}
        wanted = self.old[tie.target].tensor()
        wanted = wanted.double() if wanted.is_floating_point() else wanted
        free = {address: tensor for address, tensor in exact.items() if tensor.is_floating_point()}
        fixed = set(exact) - set(free)
        try:
            if self.keep == "target":
                new = invert(tie.source, wanted, exact, fixed)
            else:
                new = project(
                    [(tie.source, wanted), *((reference(name_of(a)), t) for a, t in free.items())], exact, fixed
                )
        except TieError as error:
            problem, fix = f"No source gives {shown(tie.target)}.", "keep='source'"
            raise unsafe(self.checkpoint.path, problem, found=error.problem, fix=fix) from None
        return {name_of(address): tensor.to(wide[address].dtype) for address, tensor in new.items()}

    def refuse_overruled(self, ties: list[Equation], found: Mapping[str, Tensor]) -> None:
        for tie in ties:
            if not torch.equal(found[tie.target], self.old[tie.target].tensor()):
                problem, fix = "Two targets of one source differ.", "keep='source' or 'mean'"
                raise unsafe(self.checkpoint.path, problem, found=shown(tie.target), fix=fix)

    # -- what stays as it is

    def left(self) -> Iterator[str]:
        """Say what was seen and not mended."""
        config = self.seen.configuration
        if config and lost_head(self.old, config):
            yield "left: no head is stored, though config.json unties it; nothing says what it was"
        pair = self.configured(tied=False)
        if pair and same_values(*(self.old[name] for name in pair)):
            yield f"left: {' and '.join(map(shown, pair))} are equal; set tie_word_embeddings to true in config.json"
        copies = sum(len(found.names) - 1 for found in self.seen.copies) + len(self.seen.rows)
        if copies:
            what = "1 tensor is" if copies == 1 else f"{copies} tensors are"
            yield f"left: {what} stored twice, which tied shrink drops"

    # -- what is written

    def rewrite(self) -> Rewrite:
        """Return the new checkpoint."""
        files: list[NewFile] = []
        for one in self.checkpoint.files:
            assert one.header
            names = [n for n in one.header.by_offset() if self.places.get(n) == one.path.name]
            metadata = one.header.metadata if self.checkpoint.index else self.metadata(one.header.metadata)
            files.append(NewFile(one.path.name, {name: self.piece(name) for name in names}, metadata))
        return Rewrite(files, self.index())

    def piece(self, name: str) -> Piece:
        stored = self.old.get(name) or self.added[name]
        if name not in self.settled:
            return Piece.of(stored)
        value = self.settled[name]
        return Piece(stored.dtype, stored.shape, lambda: PickledTensor.of(value, stored.file).words())

    def metadata(self, metadata: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """Return metadata with the mended ledger, without what is promised in vain."""
        if metadata is None:
            return None
        found = {key: text for key, text in metadata.items() if key not in self.vain and key != KEY}
        return found | ({KEY: self.ledger.to_text()} if self.ledger and KEY in metadata else {})

    def index(self) -> tuple[str, Mapping[str, Any]] | None:
        index = self.checkpoint.index
        if index is None:
            return None
        named = {name: self.places[name] for name in index.places if name in self.places}
        content = dict(index.content) | {"weight_map": named | {name: self.places[name] for name in self.added}}
        if isinstance(content.get("metadata"), dict):
            content["metadata"] = self.metadata(cast(Any, content["metadata"]))
        return self.checkpoint.path.name, content

    def prove(self, written: Mapping[str, Stored]) -> None:
        """Make sure that every tie of the ledger holds in what was written."""
        for tie in self.ledger.ties if self.ledger else ():
            if tie.target in written and set(tie.names) <= written.keys() and not holds(tie, written):
                problem, fix = f"{shown(tie.target)} is still not what is declared.", "keep='source'"
                raise unsafe(self.checkpoint.path, problem, found=shown(str(tie.source)), fix=fix)


def _reason(error: FileError) -> str:
    """Say what is wrong with a ledger, without the file's name."""
    return f"{error.problem.split(': Its ledger: ', 1)[-1]} Found: {error.found}."
