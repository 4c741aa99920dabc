"""The audit of a checkpoint: from what is seen in it to a report.

Owns: the findings TIE3xx and their words. Must not read tensors itself. Read next: `shrink.py`, which acts.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tied.checking.report import Finding, Group, Report
from tied.checking.rules import chosen, finding
from tied.errors import during, short
from tied.files.dtypes import BITS, IN_TORCH
from tied.files.duplicates import IDENTITY, Copies
from tied.files.promises import absent, head_and_embedding, lost_head, same_values, unlisted
from tied.files.reader import Stored
from tied.files.refusal import shown
from tied.files.survey import Survey, survey

if TYPE_CHECKING:
    from tied.files.ledger import Equation

LARGE_BYTES, LARGE_SHARE = 1 << 20, 0.01  # what is less than both is no reason to write a file anew
NAMED = 5


def audit(path: str | Path, *, prove: bool = False) -> Report:
    """Look for shared, repeated, missing and contradictory tensors in a checkpoint, without a model.

    Law: two tensors are reported as copies exactly if they have the same bits, up to the order of axes; with
    `prove=False` a pair of different ones passes as transposed copies with probability below 1e-7.

    What no two shapes allow is not read; of the rest as much as is needed, in place. The file is not changed.

    Args:
        path: A safetensors file, an index of shards, a folder that holds one of them, or a `.pt`, of which
            nothing but tensors is read.
        prove: Compare transposed copies element by element.

    Raises:
        FileError: It cannot be read; the message names the file and the offence.
        OSError: It cannot be opened.

    Example:
        >>> import tempfile, torch
        >>> from safetensors.torch import save_file
        >>> path = Path(tempfile.mkdtemp()) / "model.safetensors"
        >>> weight = torch.rand(512, 1024)
        >>> save_file({"embed": weight, "head": weight.T.contiguous()}, path)
        >>> [found.code for found in audit(path).findings]
        ['TIE302']
    """
    with during(f"check({str(path)!r})"):
        seen = survey(path, prove=prove)
    return _Auditor(seen).report()


class _Auditor:
    """The words for one survey."""

    def __init__(self, seen: Survey) -> None:
        self.seen = seen
        self.stored = seen.checkpoint.tensors
        self.total = sum(stored.nbytes for stored in seen.weights.values() if stored.plain)
        self.file = shlex.quote(str(seen.checkpoint.path))

    def report(self) -> Report:
        """Return the report."""
        restored = self.restored()
        saved = sum(_bytes_of(tie) for tie in restored)
        if self.seen.storages:
            saved += sum(self.stored[name].nbytes for name in self.seen.storages.shared)
        return Report(
            subject=str(self.seen.checkpoint.path),
            groups=tuple(self.groups()),
            findings=chosen(self.findings()),
            parameters=sum(math.prod(stored.shape) for stored in self.seen.weights.values() if stored.plain),
            bytes=self.total,
            bytes_saved=saved,
            notes=tuple(self.notes()),
        )

    def restored(self) -> list[Equation]:
        """Return the equations whose targets are not stored."""
        ledger = self.seen.ledger
        return [tie for tie in ledger.ties if tie.target not in self.stored] if ledger else []

    # -- groups

    def groups(self) -> Iterator[Group]:
        for tie in self.restored():
            yield _group("tied", (tie.names[0], tie.target), (IDENTITY, _suffix(tie)), self.stored[tie.names[0]])
        for tie in self.seen.drifted:
            yield _group("drifted", (tie.names[0], tie.target), (IDENTITY, _suffix(tie)), self.stored[tie.names[0]])
        for found in self.seen.copies:
            yield _group("equal", found.names, found.transforms, self.stored[found.names[0]])
        for rows in self.seen.rows:
            yield _group("equal", (rows.whole, rows.part), (IDENTITY, rows.transform), self.stored[rows.whole])
        if self.seen.storages:
            for name, expression in self.seen.storages.shared.items():
                (address,) = expression.sources()
                source = ".".join(address)
                yield _group("tied", (source, name), (IDENTITY, _after(str(expression), source)), self.stored[source])

    # -- findings

    def findings(self) -> Iterator[Finding]:
        yield from self.twice()
        yield from self.promised()
        yield from self.configured()
        yield from self.in_storages()

    def twice(self) -> Iterator[Finding]:
        """Say what is stored more than once; what is little is said in one note."""
        little: list[tuple[str, str, int]] = []
        for code, name, source, transform in self.seconds():
            wasted = self.stored[name].nbytes
            said = f"{shown(name)} is {_of(source, transform)}"
            if self.is_large(wasted):
                message = f"{said}, bit for bit: {size(wasted)} {_shape(self.stored[name])} are stored twice."
                yield finding(code, (source, name), message, self.fix("shrink"))
            else:
                little.append((name, said, wasted))
        if little:
            names, said, wasted = zip(*little, strict=True)
            few = "; ".join(said[:NAMED]) + ("; ..." if len(said) > NAMED else "")
            many = "One small tensor is" if len(said) == 1 else f"{len(said)} small tensors are"
            yield finding(
                "TIE304", names, f"{many} stored twice, {size(sum(wasted))} in all: {few}.", self.fix("shrink")
            )

    def seconds(self) -> Iterator[tuple[str, str, str, str]]:
        """Yield every copy that nobody declared, with its code, its source and what it is of the source."""
        declared = {frozenset((tie.target, *tie.names)) for tie in self.seen.ledger.ties} if self.seen.ledger else set()
        untied = self.untied_pair()
        for found in self.seen.copies:
            for name, transform in zip(found.names[1:], found.transforms[1:], strict=True):
                pair = frozenset((found.names[0], name))
                if pair not in declared and pair != untied and not _is_declared(found, name, declared):
                    moved = ".T" in transform or ".permute" in transform
                    yield "TIE302" if moved else "TIE301", name, found.names[0], transform
        for rows in self.seen.rows:
            if frozenset((rows.part, rows.whole)) not in declared:
                yield "TIE303", rows.part, rows.whole, rows.transform

    def is_large(self, nbytes: int) -> bool:
        return nbytes >= LARGE_BYTES or nbytes >= LARGE_SHARE * self.total

    def promised(self) -> Iterator[Finding]:
        if self.seen.broken:
            error = self.seen.broken
            said = f"{error.problem.split(': ', 1)[-1]} Found: {error.found}; expected: {error.expected}."
            yield finding("TIE307", (), said, self.fix("repair"))
        for name, promise in absent(self.seen.checkpoint):
            yield finding("TIE305", (name,), f"{shown(name)} is not there, but {short(promise)}.", self.fix("repair"))
        for tie in self.seen.drifted:
            said = f"{shown(tie.target)} is declared to be {short(str(tie.source))}, and has another value."
            yield finding("TIE306", (tie.target, *tie.names), said, self.fix("repair", " --keep source"))
        extra = unlisted(self.seen.checkpoint)
        if extra:
            said = f"{len(extra)} of the tensors in the shards are not in the index: {_few(extra)}."
            yield finding("TIE308", extra, said, self.fix("repair"))

    def configured(self) -> Iterator[Finding]:
        """Compare with what `config.json` says of head and embedding."""
        config = self.seen.configuration
        if config is None or config.ties is None:
            return
        head, embedding = head_and_embedding(self.stored, config.vocabulary)
        where = f"tie_word_embeddings in {shown(config.path.name)} is {str(config.ties).lower()}"
        if head and embedding:
            equal = same_values(self.stored[head], self.stored[embedding])
            if config.ties and not equal:
                said = f"{where}, but {shown(head)} and {shown(embedding)} have different values: one of them is lost."
                yield finding("TIE309", (head, embedding), said, "set tie_word_embeddings to false")
            if not config.ties and equal:
                said = f"{where}, but {shown(head)} and {shown(embedding)} are equal, bit for bit."
                yield finding("TIE310", (head, embedding), said, "set tie_word_embeddings to true")
        if lost_head(self.stored, config):
            said = f"{where}, but no head is stored: it will be drawn at random."
            yield finding("TIE305", ("lm_head.weight",), said, "set tie_word_embeddings to true, or save the head")

    def untied_pair(self) -> frozenset[str | None]:
        config = self.seen.configuration
        if config is None or config.ties is not False:
            return frozenset()
        return frozenset(head_and_embedding(self.stored, config.vocabulary))

    def in_storages(self) -> Iterator[Finding]:
        if not self.seen.storages:
            return
        for name, wasted in self.seen.storages.wasted.items():
            if self.is_large(wasted):
                said = f"The storage of {shown(name)} is {size(wasted)} larger than what lies in it."
                yield finding("TIE311", (name,), said, "save tensor.clone()")
        shared = list(self.seen.storages.shared)
        if shared:
            said = f"{len(shared)} of the tensors lie in the storage of another one: {_few(shared)}."
            yield finding("TIE312", shared, said)

    def notes(self) -> Iterator[str]:
        storages = self.seen.storages
        if not storages:
            return
        if storages.optimizer:
            nbytes = sum(self.stored[name].nbytes for name in storages.optimizer)
            yield f"Not compared: {len(storages.optimizer)} tensors of an optimizer's state, {size(nbytes)}."
        if storages.unseen:
            yield f"Not compared, as they have no plain elements: {_few(sorted(storages.unseen))}."

    def fix(self, command: str, more: str = "") -> str:
        return f"tied {command} {self.file} NEW{more}"


def size(nbytes: int) -> str:
    """Write a number of bytes.

    Example:
        >>> size(999), size(1500), size(3_500_000_000)
        ('999 bytes', '1.5 kB', '3.5 GB')
    """
    if nbytes < 1000:
        return f"{nbytes} bytes"
    power = min(int(math.log10(nbytes) / 3 + 1e-9), 4)
    return f"{nbytes / 1000**power:.1f} {' kMGT'[power]}B"


def _is_declared(found: Copies, name: str, declared: set[frozenset[str]]) -> bool:
    return any(frozenset((name, other)) in declared for other in found.names if other != name)


def _group(state: str, names: tuple[str, ...], transforms: tuple[str, ...], first: Stored) -> Group:
    dtype = IN_TORCH.get(first.dtype, first.dtype)
    return Group(state, names, transforms, first.shape, dtype, first.nbytes)  # pyright: ignore[reportArgumentType]


def _suffix(tie: Equation) -> str:
    text = str(tie.source)
    return _after(text, tie.names[0]) if len(tie.names) == 1 else text


def _after(text: str, name: str) -> str:
    """Return what follows a name in an expression; the whole where it does not begin with it."""
    return text if not text.startswith(name) else text[len(name) :] or IDENTITY


def _of(source: str, transform: str) -> str:
    return shown(source if transform == IDENTITY else source + transform)


def _shape(stored: Stored) -> str:
    return f"({stored.dtype} {tuple(stored.shape)})"


def _few(names: list[str]) -> str:
    return ", ".join(map(shown, names[:NAMED])) + (", ..." if len(names) > NAMED else "")


def _bytes_of(tie: Equation) -> int:
    return math.prod(tie.shape) * BITS[tie.dtype] // 8
