"""The run of the proofs, measurement by measurement.

Owns: order, time, and what becomes of a proof that breaks off. Must not print. Read next: `report.py`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence

from tied.study.progress import Progress
from tied.study.proofs.proof import Control, Measurement, Outcome, Proof, at_most

Event = Progress | Outcome


def run(proofs: Sequence[Proof]) -> Iterator[Event]:
    """Measure every claim of the proofs.

    A proof that raises an error is a claim that does not hold; the others go on.

    Yields:
        Each `Outcome` as soon as it is measured, and `Progress` behind each proof.
    """
    for done, proof in enumerate(proofs):
        yield Progress("proving", done, len(proofs), proof.title, milestone=False)
        held = True
        for outcome in _timed(proof):
            held = held and outcome.finding.proven
            yield outcome
        yield Progress("proving", done + 1, len(proofs), f"{proof.name}: {'holds' if held else 'does not hold'}")


def _timed(proof: Proof) -> Iterator[Outcome]:
    begin = time.perf_counter()
    for measurement in _guarded(proof):
        yield Outcome(proof.name, measurement, time.perf_counter() - begin)
        begin = time.perf_counter()


def _guarded(proof: Proof) -> Iterator[Measurement]:
    try:
        yield from proof.measure()
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        yield Measurement("the proof runs to its end", math.nan, at_most(0), Control("not reached", math.nan), reason)
