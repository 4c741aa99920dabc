"""Pictures as PNG bytes: figures, colors and curves.

Owns: what all pictures have in common; matplotlib is imported when one is drawn. Must not write files or know
where its arrays come from.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, QUIET = "#222222", "#777777"
COLORS = ("#0b5394", "#cc6b1f", "#38761d", "#a61c5b", "#6a5acd", "#7f6000")
DOTS_PER_INCH = 130
LINE_HEIGHT = 0.05
"""Height of a line of a curve's label, as a part of the plot's height."""


class MissingPackageError(ImportError):
    """A picture was asked for, and matplotlib is not installed; the message is one line."""


@dataclass(frozen=True)
class Curve:
    """One line of a plot: a value per epoch, counted from 1."""

    label: str
    values: Sequence[float]


def curves(lines: Sequence[Curve], title: str, *, ylabel: str) -> bytes:
    """Draw curves over epochs with a logarithmic height, each named at its end."""
    figure = figure_of(10, 4.6)
    axis = figure.subplots()
    for index, line in enumerate(lines):
        color = COLORS[index % len(COLORS)]
        axis.plot(range(1, len(line.values) + 1), line.values, color=color, linewidth=1.6)
    axis.set_yscale("log")
    axis.set_ylim(bottom=0.8 * min(min(line.values) for line in lines))
    axis.set_xlim(left=1, right=max(len(line.values) for line in lines))
    for kind in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
        kind("{x:g}")
    _name_ends(axis, lines)
    axis.set_xlabel("epoch", color=QUIET)
    axis.set_ylabel(ylabel, color=QUIET)
    axis.tick_params(colors=QUIET, which="both")
    axis.spines[["top", "right"]].set_visible(False)
    return png(figure, title)


def _name_ends(axis: Axes, lines: Sequence[Curve]) -> None:
    """Write each label right of its curve's end, none over another."""
    low, high = np.log(axis.get_ylim())
    bottom = -1.0
    for index in sorted(range(len(lines)), key=lambda index: lines[index].values[-1]):
        line, height = lines[index], LINE_HEIGHT * (1 + lines[index].label.count("\n"))
        end = float((np.log(line.values[-1]) - low) / (high - low))
        bottom = max(bottom, end - height / 2)
        _name_end(axis, line, bottom + height / 2, COLORS[index % len(COLORS)])
        bottom += height


def _name_end(axis: Axes, line: Curve, height: float, color: str) -> None:
    """Write a label at `height` (0..1) of the plot, with a thin line to the curve's end."""
    axis.annotate(
        line.label,
        (len(line.values), line.values[-1]),
        (1.04, height),
        textcoords="axes fraction",
        arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.6, "relpos": (0, 0.5)},
        color=color,
        fontsize=9,
        va="center",
    )


def figure_of(width_inches: float, height_inches: float) -> Figure:
    """Return an empty figure that no window shows.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingPackageError("Pictures need matplotlib: pip install 'tied[pictures]'") from None
    return Figure(figsize=(width_inches, height_inches), layout="constrained", facecolor="white")


def bare(axis: Axes) -> None:
    """Leave nothing of an axis but what is drawn on it."""
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)


def png(figure: Figure, title: str) -> bytes:
    """Give a figure its title, and return it as PNG bytes."""
    figure.suptitle(title, x=0.01, ha="left", color=INK, fontsize=12, fontweight="bold")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=DOTS_PER_INCH)
    return stream.getvalue()
