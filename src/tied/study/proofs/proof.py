"""What a proof says: a claim, the figure measured, the band it must lie in, and a control that must not.

Owns: the values. Must not measure anything. Read next: `catalogue.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Band:
    """The figures that a claim allows, both ends included; not-a-number is never inside.

    Example:
        >>> print(at_most(1e-12), at_least(0.1), exactly(0), Band(0.5, 2), sep=", ")
        ≤ 1e-12, ≥ 0.1, = 0, 0.5 … 2
        >>> at_most(1e-12).holds(0.0), at_most(1e-12).holds(float("nan"))
        (True, False)
    """

    low: float = -math.inf
    high: float = math.inf

    def holds(self, figure: float) -> bool:
        """Tell whether `figure` lies in the band."""
        return self.low <= figure <= self.high

    def __str__(self) -> str:
        """Write the band for a table."""
        if self.low == self.high:
            return f"= {self.low:g}"
        if math.isinf(self.low):
            return f"≤ {self.high:g}"
        return f"≥ {self.low:g}" if math.isinf(self.high) else f"{self.low:g} … {self.high:g}"


def at_most(high: float) -> Band:
    """Return the band up to `high`."""
    return Band(high=high)


def at_least(low: float) -> Band:
    """Return the band from `low`."""
    return Band(low=low)


def exactly(figure: float) -> Band:
    """Return the band that holds one figure only."""
    return Band(figure, figure)


@dataclass(frozen=True)
class Control:
    """The same figure, measured where the claim is false.

    Attributes:
        what: What was done otherwise.
        measured: The figure; it must be a number outside the band.
    """

    what: str
    measured: float


@dataclass(frozen=True)
class Measurement:
    """One claim with its evidence.

    Attributes:
        claim: What is said, in one line.
        measured: The figure.
        band: Where it must lie.
        control: What shows that the figure can lie elsewhere.
        note: A further fact, such as what the property costs.
    """

    claim: str
    measured: float
    band: Band
    control: Control
    note: str = ""

    @property
    def claim_holds(self) -> bool:
        """Whether the figure lies in the band."""
        return self.band.holds(self.measured)

    @property
    def control_fails(self) -> bool:
        """Whether the control lies outside the band, as it must; a control that gave no number proves nothing."""
        return math.isfinite(self.control.measured) and not self.band.holds(self.control.measured)

    @property
    def proven(self) -> bool:
        """Whether the claim holds and the control fails."""
        return self.claim_holds and self.control_fails


@dataclass(frozen=True)
class Proof:
    """A subject with its measurement.

    Attributes:
        name: What `--only` and tables call it.
        title: What it is about, in one line.
        measure: Yields the measurements one by one; the same in every run.
        source: Paper and section, where the claim has one.
    """

    name: str
    title: str
    measure: Callable[[], Iterator[Measurement]]
    source: str = ""


@dataclass(frozen=True)
class Outcome:
    """A measured claim of a run.

    Attributes:
        proof: Name of the proof it belongs to.
        finding: Its measurement.
        seconds: How long its measurement took, control included.
    """

    proof: str
    finding: Measurement
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return plain values, ready for `json.dumps`; an open end, and what is no number, is null."""
        measurement = self.finding
        return {
            "proof": self.proof,
            "claim": measurement.claim,
            "measured": _finite(measurement.measured),
            "band": [_finite(measurement.band.low), _finite(measurement.band.high)],
            "control": {"what": measurement.control.what, "measured": _finite(measurement.control.measured)},
            "proven": measurement.proven,
            "note": measurement.note,
            "seconds": self.seconds,
        }


def _finite(figure: float) -> float | None:
    """Return the figure, or None where JSON has no word for it."""
    return figure if math.isfinite(figure) else None
