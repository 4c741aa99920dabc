"""What is in a checkpoint: everything that an audit reports and that shrinking and repairing act on.

Owns: the looking, each thing once. Must not judge, nor write. Read next: `audit.py`, then
`files/rewriting/shrink.py` and `files/rewriting/repair.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tied.errors import FileError
from tied.files.auditing.consistency import holds
from tied.files.auditing.duplicates import IDENTITY, Copies, Search
from tied.files.auditing.fingerprint import Fingerprints
from tied.files.auditing.fused_rows import Rows, find_rows
from tied.files.auditing.workers import Workers
from tied.files.reading.checkpoint import Checkpoint, open_checkpoint
from tied.files.reading.stored import Stored
from tied.files.reading.transformers_config import Configuration, read_configuration

if TYPE_CHECKING:
    from tied.files.auditing.pt_storages import Storages
    from tied.files.reading.file_ledger import Equation, Ledger


STATE_DICT = Path("state dict")


@dataclass(frozen=True)
class Inspection:
    """A checkpoint and what was seen in it.

    Attributes:
        checkpoint: Opened.
        ledger: Of the file; None where it has none, or a broken one.
        broken: Why the ledger cannot be read.
        drifted: The equations of the ledger whose target is stored with another value.
        copies: Tensors that are equal up to the order of axes.
        rows: Tensors that are rows of larger ones.
        storages: Of a `.pt`: which memory is shared, which is wasted, what is no weight.
        configuration: What a `config.json` beside the file says; None where there is none.
    """

    checkpoint: Checkpoint
    ledger: Ledger | None
    broken: FileError | None
    drifted: tuple[Equation, ...]
    copies: tuple[Copies, ...]
    rows: tuple[Rows, ...]
    storages: Storages | None
    configuration: Configuration | None

    @property
    def weights(self) -> Mapping[str, Stored]:
        """The tensors that own their memory and are no state of the training."""
        return weights_of(self.checkpoint, self.storages)


def inspect(subject: str | Path | Mapping[str, Any], *, prove: bool = False, seed: int | None = None) -> Inspection:
    """Look at a checkpoint; whatever is no checkpoint at all is refused.

    Args:
        subject: A file, an index, a folder; or a state dict.
        prove: Compare transposed copies element by element, instead of by random sums.
        seed: Of the random places and weights, for a test that wants the same again.

    Raises:
        FileError: It cannot be read.
        OSError: It cannot be opened.
    """
    checkpoint = open_checkpoint(subject) if isinstance(subject, str | Path) else _in_memory(subject)
    ledger, broken = _ledger(checkpoint)
    storages = _storages(checkpoint)
    weights = weights_of(checkpoint, storages)
    prints = Fingerprints(seed)
    with Workers() as workers:
        copies = Search(workers, prints, prove=prove).copies(weights)
        rows = list(_rows(weights, copies, workers, prints))
    return Inspection(
        checkpoint=checkpoint,
        ledger=ledger,
        broken=broken,
        drifted=_drifted(checkpoint, ledger),
        copies=tuple(copies),
        rows=tuple(rows),
        storages=storages,
        configuration=read_configuration(checkpoint.path.parent) if isinstance(subject, str | Path) else None,
    )


def _rows(
    weights: Mapping[str, Stored], copies: list[Copies], workers: Workers, prints: Fingerprints
) -> Iterator[Rows]:
    """Yield the first names that are rows of another tensor, or of a copy of it that lies in another order."""
    seconds = {
        name: (found.names[0], how)
        for found in copies
        for name, how in zip(found.names[1:], found.transforms[1:], strict=True)
    }
    kept = {name: stored for name, stored in weights.items() if name not in seconds or seconds[name][1] != IDENTITY}
    for rows in find_rows(kept, workers=workers, prints=prints):
        if rows.part not in seconds:
            first, how = seconds.get(rows.whole, (rows.whole, ""))
            yield replace(rows, whole=first, turned=how)


def weights_of(checkpoint: Checkpoint, storages: Storages | None) -> Mapping[str, Stored]:
    """Return the tensors among which copies are looked for."""
    if storages is None:
        return checkpoint.tensors
    left_out = {*storages.shared, *storages.training}
    return {name: stored for name, stored in checkpoint.tensors.items() if name not in left_out}


def _in_memory(state: Mapping[str, Any]) -> Checkpoint:
    """Return a state dict as if it had been read from a file."""
    from tied.files.reading.pt_file import described

    one = described(state, STATE_DICT)
    return Checkpoint(STATE_DICT, "torch", one.tensors, None, (one,))


def _ledger(checkpoint: Checkpoint) -> tuple[Ledger | None, FileError | None]:
    metadata = checkpoint.metadata or {}
    if "tied" not in metadata and not any(text in checkpoint.tensors for text in metadata.values()):
        return None, None  # and no need of torch, which takes longer to import than most files to read
    from tied.files.reading.file_ledger import read_ledger

    specs = {name: (stored.dtype, stored.shape) for name, stored in checkpoint.tensors.items()}
    try:
        return read_ledger(checkpoint.metadata, specs, checkpoint.path), None
    except FileError as error:
        return None, error


def _storages(checkpoint: Checkpoint) -> Storages | None:
    if all(one.header for one in checkpoint.files):
        return None
    from tied.files.auditing.pt_storages import look_at

    return look_at(checkpoint)


def _drifted(checkpoint: Checkpoint, ledger: Ledger | None) -> tuple[Equation, ...]:
    if ledger is None:
        return ()
    stored = checkpoint.tensors
    both = [tie for tie in ledger.ties if tie.target in stored and set(tie.names) <= stored.keys()]
    return tuple(tie for tie in both if not holds(tie, stored))
