"""How the uses of shared weights pull them: a `Tension` as data, as a table and as a picture.

Owns: the figures, the text and the PNG. Must not compute gradients: `proving/tension.py` does. Read next: `table.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tied.reporting.table import Cell, Table, Tone, to_text as table_to_text
from tied.show.pictures import COLORS, INK, QUIET, figure_of, png

MOST_USES, MOST_WEIGHTS, MOST_PANELS = 8, 16, 6
PLAIN = 0.1  # a cosine nearer to zero is called neither good nor bad
NOTES = (
    "norm: of the weight's gradient, and of the part that each use has in it; the mean over the steps.",
    "cosine: between a part and the sum of the other parts; the mean over the steps, the lowest and the highest.",
    "agreement: the gradient's norm over the sum of its parts' norms. 1: all uses pull one way; 0: they cancel; "
    "0.71: two equal parts at a right angle.",
)


@dataclass(frozen=True)
class Pull:
    """How the uses of one weight pull it, step by step.

    Attributes:
        weight: The address of the Parameter.
        uses: What reads it: a slot, a call of a module that is called several times, or a read from elsewhere.
        norms: For each step, the norm of each use's part of the gradient.
        cosines: For each step, the cosine between each two parts, as a matrix; NaN where a part is zero.
        gradients: For each step, the norm of the gradient, which is the sum of the parts.
    """

    weight: str
    uses: tuple[str, ...]
    norms: tuple[tuple[float, ...], ...]
    cosines: tuple[tuple[tuple[float, ...], ...], ...]
    gradients: tuple[float, ...]

    __module__ = "tied"

    @property
    def agreement(self) -> tuple[float, ...]:
        """For each step, the gradient's norm over the sum of its parts' norms: 1 if all pull one way, 0 if they cancel.

        Two equally strong parts at a right angle give 0.71.
        """
        sums = [sum(norms) for norms in self.norms]
        return tuple(whole / total if total else math.nan for whole, total in zip(self.gradients, sums, strict=True))

    def to_json(self) -> dict[str, Any]:
        """Return plain data, with None for NaN."""
        return {
            "weight": self.weight,
            "uses": list(self.uses),
            "norms": [list(norms) for norms in self.norms],
            "cosines": [[[_known(c) for c in row] for row in matrix] for matrix in self.cosines],
            "gradients": list(self.gradients),
            "agreement": [_known(value) for value in self.agreement],
        }


@dataclass(frozen=True)
class Tension:
    """How the uses of every shared weight of a model pull it.

    Attributes:
        subject: The model's class.
        steps: How many gradients were looked at.
        pulls: One entry for each weight with several uses.
    """

    subject: str
    steps: int
    pulls: tuple[Pull, ...]

    __module__ = "tied"

    def __str__(self) -> str:
        """Return a table."""
        return to_text(self)

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {"subject": self.subject, "steps": self.steps, "pulls": [pull.to_json() for pull in self.pulls]}

    def to_png(self) -> bytes:
        """Return a picture of the norms and the cosines over the steps; needs matplotlib (`tied[pictures]`)."""
        return to_png(self)

    def _repr_png_(self) -> bytes:
        return self.to_png()


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


# -- the table ------------------------------------------------------------------------------------------


def to_text(tension: Tension) -> str:
    """Write a tension as a table: one block for each weight, one row for each of its uses."""
    count, steps = len(tension.pulls), f"{tension.steps} step{'s' * (tension.steps != 1)}"
    if not count:
        return f"{tension.subject}: no weight has more than one use ({steps})."
    rows = [row for pull in tension.pulls[:MOST_WEIGHTS] for row in _rows(pull)]
    more = (f"And {count - MOST_WEIGHTS} more weights.",) if count > MOST_WEIGHTS else ()
    headers = ("weight\n  use", "\nnorm", "\nshare", "\ncosine", "\nlowest", "\nhighest", "agree-\nment")
    table = Table(headers, tuple(rows), (*more, *NOTES))
    weights = f"{count} weight{'s' * (count != 1)} with several uses"
    return f"{tension.subject}: {weights}, {steps}\n\n{table_to_text(table)}"


def _rows(pull: Pull) -> Iterator[tuple[Cell, ...]]:
    blank = Cell("")
    agreement = Cell(_number(_mean(pull.agreement), ".2f"))
    yield Cell(pull.weight), Cell(_number(_mean(pull.gradients), ".3g")), blank, blank, blank, blank, agreement
    norms = np.array(pull.norms).mean(axis=0)
    shares = norms / norms.sum() if norms.sum() else np.full_like(norms, math.nan)
    cosines = to_the_others(pull)
    for index, use in enumerate(pull.uses[:MOST_USES]):
        known = [value for value in cosines[:, index] if not math.isnan(value)] or [math.nan]
        figures = [Cell(_number(value, ".2f"), _tone(value)) for value in (_mean(known), min(known), max(known))]
        share = Cell("-" if math.isnan(shares[index]) else f"{100 * shares[index]:.0f} %")
        yield Cell(f"  {use}"), Cell(_number(norms[index], ".3g")), share, *figures, blank
    if len(pull.uses) > MOST_USES:
        yield Cell(f"  and {len(pull.uses) - MOST_USES} more uses"), *[blank] * 6


def to_the_others(pull: Pull) -> np.ndarray:
    """Return the cosine between each part and the sum of the others, `(steps, uses)`; NaN where one of them is zero."""
    norms, cosines = np.array(pull.norms), np.nan_to_num(np.array(pull.cosines))
    products = norms[:, :, None] * cosines * norms[:, None, :]
    own = norms**2
    others = np.sqrt(np.clip(products.sum(axis=(1, 2))[:, None] - 2 * products.sum(axis=2) + own, 0, None))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.clip((products.sum(axis=2) - own) / (norms * others), -1, 1)


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else f"{value:{form}}"


def _tone(cosine: float) -> Tone:
    return "plain" if not abs(cosine) > PLAIN else "good" if cosine > 0 else "bad"


# -- the picture ----------------------------------------------------------------------------------------


def to_png(tension: Tension) -> bytes:
    """Draw the norms of the parts, and below them their cosines to the others, over the steps.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    pulls = tension.pulls[:MOST_PANELS]
    figure = figure_of(1.5 + 4.2 * max(len(pulls), 1), 5.6)
    panels = figure.subplots(2, max(len(pulls), 1), squeeze=False, sharex=True)
    for (upper, lower), pull in zip(panels.T, pulls, strict=False):
        lines = zip(np.array(pull.norms).T, to_the_others(pull).T, pull.uses, strict=True)
        for index, (norms, cosines, use) in enumerate(list(lines)[:MOST_USES]):
            style = {"color": COLORS[index % len(COLORS)], "linewidth": 1.6, "marker": "o", "markersize": 3}
            upper.plot(range(1, tension.steps + 1), norms, label=use, **style)
            lower.plot(range(1, tension.steps + 1), cosines, **style)
        upper.plot(range(1, tension.steps + 1), pull.gradients, color=INK, linestyle="--", label="gradient")
        upper.set_title(pull.weight, color=INK, fontsize=10)
        upper.set_ylim(bottom=0)
        upper.legend(fontsize=8, frameon=False)
        lower.axhline(0, color=QUIET, linewidth=0.8)
        lower.set_ylim(-1.05, 1.05)
        lower.set_xlabel("step", color=QUIET)
        for axis in (upper, lower):
            axis.tick_params(colors=QUIET)
            axis.spines[["top", "right"]].set_visible(False)
    panels[0, 0].set_ylabel("norm of the part", color=QUIET)
    panels[1, 0].set_ylabel("cosine to the others", color=QUIET)
    return png(figure, f"{tension.subject}: how the uses of a weight pull it")
