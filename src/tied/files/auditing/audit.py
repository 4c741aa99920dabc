"""The audit of a checkpoint: from what is seen in it to a report.

Owns: the findings TIE3xx and their words. Must not read tensors itself.
Read next: `files/rewriting/shrink.py`, which acts.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tied.errors import during, short
from tied.files.auditing.consistency import absent, head_and_embedding, lost_head, same_values, unlisted
from tied.files.auditing.duplicates import IDENTITY, Copies
from tied.files.auditing.inspection import Inspection, inspect
from tied.files.reading.dtypes import BITS, IN_TORCH
from tied.files.reading.folder import twin
from tied.files.reading.refusal import shown
from tied.files.reading.stored import Stored
from tied.reporting.facts import Finding, Group, State
from tied.reporting.fold import fold
from tied.reporting.report import Report
from tied.reporting.rules import chosen, finding
from tied.reporting.text import size_text

if TYPE_CHECKING:
    from tied.files.reading.file_ledger import Equation

LARGE_BYTES, LARGE_SHARE = 1 << 20, 0.01  # what is less than both is no reason to write a file anew
NAMED = 5


def audit(
    subject: str | Path | Mapping[str, Any],
    *,
    prove: bool = False,
    select: Sequence[str] | None = None,
    ignore: Sequence[str] = (),
) -> Report:
    """Look for shared, repeated, missing and contradictory tensors in a checkpoint, without a model.

    Law: two tensors are reported as copies exactly if they have the same bits, up to the order of axes; with
    `prove=False` a pair of different ones passes as transposed copies with probability below 1e-8.

    What no two shapes allow is not read; of the rest as much as is needed, in place. The file is not changed.

    Args:
        subject: A safetensors file, an index of shards, a folder that holds one of them, a `.pt`, of which
            nothing but tensors is read; or a state dict.
        prove: Compare transposed copies element by element.
        select: Codes of findings, or their beginnings, to report; None is all.
        ignore: Codes, or their beginnings, to leave out.

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
    with during(f"check({str(subject)!r})" if isinstance(subject, str | Path) else "check(state_dict)"):
        seen = inspect(subject, prove=prove)
    report = _Auditor(seen).report()
    return replace(report, findings=chosen(report.findings, select=select, ignore=ignore))


class _Auditor:
    """The words for one inspection."""

    def __init__(self, seen: Inspection) -> None:
        self.seen = seen
        self.stored = seen.checkpoint.tensors
        self.total = sum(stored.nbytes for stored in seen.weights.values() if stored.plain)
        self.file = shlex.quote(str(seen.checkpoint.path))

    def report(self) -> Report:
        """Return the report."""
        restored, storages = self.restored(), self.seen.storages
        saved = sum(_bytes_of(tie) for tie in restored)
        if storages:
            saved += sum(self.stored[name].nbytes for name in storages.shared)
        return Report(
            subject=str(self.seen.checkpoint.path),
            groups=self.folded,
            findings=tuple(self.findings()),
            parameters=sum(math.prod(stored.shape) for stored in self.seen.weights.values() if stored.plain),
            bytes=self.total,
            bytes_saved=saved,
            notes=tuple(self.notes()),
            optimizer_bytes=sum(self.stored[name].nbytes for name in storages.training) if storages else 0,
        )

    def restored(self) -> list[Equation]:
        """Return the equations whose targets are not stored."""
        ledger = self.seen.ledger
        return [tie for tie in ledger.ties if tie.target not in self.stored] if ledger else []

    # -- groups

    @cached_property
    def folded(self) -> tuple[Group, ...]:
        """The groups, whole modules as one. What is a single number is not compared, so that it need not be shared."""
        names = [name for name, stored in self.stored.items() if stored.shape]
        return fold(self.groups(), dict.fromkeys([*names, *(tie.target for tie in self.restored())]))

    def groups(self) -> Iterator[Group]:
        shared = [(tie.names[0], tie.target, _suffix(tie)) for tie in self.restored()]
        yield from self.around("tied", shared)
        yield from self.around("drifted", [(tie.names[0], tie.target, _suffix(tie)) for tie in self.seen.drifted])
        for found in self.seen.copies:
            yield _group("equal", found.names, found.transforms, self.stored[found.names[0]])
        yield from self.around("equal", [(rows.whole, rows.part, rows.transform) for rows in self.seen.rows])
        views: list[tuple[str, str, str]] = []
        for name, expression in self.seen.storages.shared.items() if self.seen.storages else ():
            (address,) = expression.sources()
            views.append((".".join(address), name, _after(str(expression), ".".join(address))))
        yield from self.around("tied", views)

    def around(self, state: State, found: list[tuple[str, str, str]]) -> Iterator[Group]:
        """Yield a group for each source, with what its targets are of it."""
        for source in dict.fromkeys(source for source, _, _ in found):
            targets = [(target, transform) for one, target, transform in found if one == source]
            names, transforms = zip((source, IDENTITY), *targets, strict=True)
            yield _group(state, names, transforms, self.stored[source])

    # -- findings

    def findings(self) -> Iterator[Finding]:
        yield from self.twice()
        yield from self.promised()
        yield from self.configured()
        yield from self.in_storages()

    def twice(self) -> Iterator[Finding]:
        """Say what is stored more than once; what is little is said in one note."""
        little: list[tuple[str, str, int]] = []
        found = list(self.seconds())
        known = set[tuple[str, str]]()
        for group in self.folded:
            pairs = self.in_modules(group, {(name, source) for code, name, source, _ in found if code == "TIE301"})
            wasted = sum(self.stored[name].nbytes for name, _ in pairs)
            if pairs and self.is_large(wasted):
                known.update(pairs)
                first, *others = [shown(f"{name}.*") for name in group.names]
                said = f"{_several(others)} {first}, bit for bit: {size_text(wasted)} in {len(pairs)} tensors"
                yield finding("TIE301", group.names, f"{said} are stored again.", self.fix("shrink"))
        for code, name, source, transform in found:
            wasted = self.stored[name].nbytes
            said = f"{shown(name)} is {_of(source, transform)}"
            if (name, source) in known:
                continue
            if self.is_large(wasted):
                message = f"{said}, bit for bit: {size_text(wasted)} {_shape(self.stored[name])} are stored twice."
                yield finding(code, (source, name), message, self.fix("shrink"))
            else:
                little.append((name, said, wasted))
        if little:
            names, said, wasted = zip(*little, strict=True)
            few = "; ".join(said[:NAMED]) + ("; ..." if len(said) > NAMED else "")
            many = "One small tensor is" if len(said) == 1 else f"{len(said)} small tensors are"
            yield finding(
                "TIE304", names, f"{many} stored twice, {size_text(sum(wasted))} in all: {few}.", self.fix("shrink")
            )

    def in_modules(self, group: Group, found: set[tuple[str, str]]) -> list[tuple[str, str]]:
        """Return the copies that whole modules hold, each with its source; nothing where some are declared."""
        pairs = [(name, part.names[0]) for part in group.parts for name in part.names[1:]]
        return pairs if found.issuperset(pairs) else []

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
        extra = [name for _, name in unlisted(self.seen.checkpoint)]
        if extra:
            said = f"{len(extra)} of the tensors in the shards are not in the index: {_few(extra)}."
            yield finding("TIE308", extra, said, self.fix("repair"))
        other = twin(self.seen.checkpoint.path)
        if other:
            this = self.seen.checkpoint.path.name
            said = f"{shown(other.name)} stands beside {shown(this)}: a reader takes one of them."
            yield finding("TIE308", (), said, "remove the one that is not meant")

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
                said = f"The storage of {shown(name)} is {size_text(wasted)} larger than what lies in it."
                yield finding("TIE311", (name,), said, "save tensor.clone()")
        shared = list(self.seen.storages.shared)
        if shared:
            said = f"{len(shared)} of the tensors lie in the storage of another one: {_few(shared)}."
            yield finding("TIE312", shared, said)

    def notes(self) -> Iterator[str]:
        storages = self.seen.storages
        if not storages:
            return
        if storages.unseen:
            yield f"Not compared, as they have no plain elements: {_few(sorted(storages.unseen))}."
        if storages.inert:
            yield f"Not read, and not needed for the tensors: {said_of(storages.inert)}."

    def fix(self, command: str, more: str = "") -> str:
        return f"tied {command} {self.file} NEW{more}"


def _is_declared(found: Copies, name: str, declared: set[frozenset[str]]) -> bool:
    return any(frozenset((name, other)) in declared for other in found.names if other != name)


def _group(state: State, names: tuple[str, ...], transforms: tuple[str, ...], first: Stored) -> Group:
    return Group(state, names, transforms, first.shape, IN_TORCH.get(first.dtype, first.dtype), first.nbytes)


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


def said_of(inert: Mapping[str, str]) -> str:
    """Name objects that were not read, a few at most, each with what it is."""
    said = [f"{shown(name)} ({short(ascii(kind)[1:-1])})" for name, kind in inert.items()]
    return ", ".join(said[:NAMED]) + (", ..." if len(said) > NAMED else "")


def _few(names: list[str]) -> str:
    return ", ".join(map(shown, names[:NAMED])) + (", ..." if len(names) > NAMED else "")


def _several(modules: list[str]) -> str:
    if len(modules) == 1:
        return f"{modules[0]} is"
    return (
        f"{', '.join(modules[:-1])} and {modules[-1]} are"
        if len(modules) < 4
        else (f"{modules[0]}, {modules[1]} and {len(modules) - 2} more are")
    )


def _bytes_of(tie: Equation) -> int:
    return math.prod(tie.shape) * BITS[tie.dtype] // 8
