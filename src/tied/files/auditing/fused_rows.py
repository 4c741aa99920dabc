"""Tensors of a checkpoint that are rows of another one: a fused projection beside its parts.

Owns: the search for rows. Must not judge what it finds. Read next: `audit.py`.

Law: `part` is found as rows `[start:stop]` of `whole` if they have one dtype and one shape but for the first
size, and the same bits. A few bytes of each row are read; where those of one row of a part occur in another
tensor, all bytes are compared. Parts whose rows all look alike are left out, as are vectors of fewer than 32
numbers and vectors of integers: equal counts and positions are no news.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from tied.files.auditing.compare import same_bytes
from tied.files.auditing.fingerprint import Fingerprints
from tied.files.auditing.workers import Workers
from tied.files.reading.dtypes import BITS
from tied.files.reading.stored import Stored, Words

LEAST_VECTOR = 32
TRIED = 8  # places of a row, and rows, that are tried for one that tells
MOST_HITS = 64
CHUNK = 1 << 18
PAGE = 64  # bytes that reading a few of them costs
FLOATS = ("F", "B", "C")
Keys = NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class Rows:
    """A tensor that is rows `start` to `stop` of a larger one, or of that one `turned`, as by `".T"`."""

    part: str
    whole: str
    start: int
    stop: int
    turned: str = ""

    @property
    def transform(self) -> str:
        """What the part is of the whole, in the language."""
        return f"{self.turned}[{self.start or ''}:{self.stop}]"


class _Probe(NamedTuple):
    """A row of a part by which its place in a larger tensor is found."""

    name: str
    words: Words
    row: int


def find_rows(tensors: Mapping[str, Stored], *, workers: Workers, prints: Fingerprints) -> list[Rows]:
    """Return the tensors that are rows of a larger one, each with the largest of those, in their order."""
    place = {name: number for number, name in enumerate(tensors)}
    work = [piece for bucket in _buckets(tensors) for piece in _start(bucket, workers, prints)]
    found: dict[str, Rows] = {}
    for piece in work:
        for rows in piece.result():
            found.setdefault(rows.part, rows)
    return sorted(found.values(), key=lambda rows: place[rows.part])


def _buckets(tensors: Mapping[str, Stored]) -> Iterator[dict[str, Stored]]:
    """Yield tensors by dtype and shape of a row, where there are two numbers of rows or more."""
    found: dict[tuple[str, tuple[int, ...]], dict[str, Stored]] = {}
    for name, stored in tensors.items():
        if stored.nbytes and stored.plain and BITS.get(stored.dtype, 0) >= 8 and _tells(stored):
            found.setdefault((stored.dtype, stored.shape[1:]), {})[name] = stored
    for bucket in found.values():
        if len({stored.shape[0] for stored in bucket.values()}) > 1:
            yield bucket


def _tells(stored: Stored) -> bool:
    if len(stored.shape) == 1:
        return stored.shape[0] >= LEAST_VECTOR and stored.dtype.startswith(FLOATS) and stored.dtype != "BOOL"
    return bool(stored.shape)


def _start(bucket: Mapping[str, Stored], workers: Workers, prints: Fingerprints) -> Iterator[Future[list[Rows]]]:
    """Start to look for the parts of each tensor of a bucket, in the order of their sizes, the largest first."""
    contiguous = {name: np.ascontiguousarray(stored.words()) for name, stored in bucket.items()}
    by_rows = sorted(contiguous, key=lambda name: -contiguous[name].shape[0])
    most, least = (contiguous[name].shape[0] for name in (by_rows[0], by_rows[-1]))
    places = prints.row_places(contiguous[by_rows[0]][0].nbytes, TRIED)
    probes: dict[int, list[_Probe]] = {}
    for name, words in contiguous.items():
        if words.shape[0] < most and (found := _probe(words, places)):
            probes.setdefault(found[0], []).append(_Probe(name, words, found[1]))
    for whole in by_rows:
        words = contiguous[whole]
        if words.shape[0] == least:
            break
        for at, several in probes.items():
            wanted = [probe for probe in several if probe.words.shape[0] < words.shape[0]]
            yield workers.start(words.shape[0] * PAGE, _search, whole, words, wanted, at)


def keys(words: Words, at: int) -> Keys:
    """Return some bytes of each row of a contiguous tensor, as a strided view: eight, or as many as a row has."""
    flat = words.reshape(-1).view(np.uint8)
    pitch = flat.size // words.shape[0]
    width = max(w for w in (1, 2, 4, 8) if w <= pitch)
    return as_strided(flat[at : at + width].view(f"u{width}"), (words.shape[0],), (pitch,), writeable=False)


def _probe(words: Words, places: Sequence[int]) -> tuple[int, int] | None:
    """Return a place of a row, and a row whose bytes there are no other tried row's."""
    rows = np.unique(np.linspace(0, words.shape[0] - 1, TRIED).astype(np.int64))
    for at in places:
        seen = keys(words, at)[rows]
        values, first, counts = np.unique(seen, return_index=True, return_counts=True)
        single = [int(rows[f]) for v, f, c in zip(values, first, counts, strict=True) if c == 1 and v]
        if single:
            return at, single[0]
    return None


def _search(whole: str, words: Words, probes: Sequence[_Probe], at: int) -> list[Rows]:
    """Return the parts that lie in one tensor."""
    if not probes:
        return []
    wanted = np.array([keys(probe.words, at)[probe.row] for probe in probes])
    order = np.argsort(wanted, kind="stable")
    ranked, tried = wanted[order], dict.fromkeys(range(len(probes)), 0)
    found: dict[int, Rows] = {}
    present = keys(words, at)
    for start in range(0, len(present), CHUNK):
        chunk = present[start : start + CHUNK]
        low = np.searchsorted(ranked, chunk)
        hits = np.flatnonzero(ranked[np.minimum(low, len(ranked) - 1)] == chunk)
        for hit in hits.tolist():
            for number in _alike(ranked, order, int(low[hit])):
                probe, tried[number] = probes[number], tried[number] + 1
                begin = start + hit - probe.row
                end = begin + probe.words.shape[0]
                if number in found or tried[number] > MOST_HITS or begin < 0 or end > len(words):
                    continue
                if same_bytes(words[begin:end], probe.words):
                    found[number] = Rows(probe.name, whole, begin, end)
    return list(found.values())


def _alike(ranked: Keys, order: NDArray[np.int64], low: int) -> Iterator[int]:
    """Yield the probes of one key."""
    key = ranked[low]
    while low < len(ranked) and ranked[low] == key:
        yield int(order[low])
        low += 1
