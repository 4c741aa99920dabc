"""Pictures as PNG bytes.

Owns: every use of matplotlib, imported when a picture is drawn. Must not write files or know where its
arrays come from.
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
GAP = 1
LINE_HEIGHT = 0.05
"""Height of a line of a curve's label, as a part of the plot's height."""
HEADINGS = ("encoder's filters", "decoder's filters, transposed back", "difference")


class MissingPackageError(ImportError):
    """A picture was asked for, and matplotlib is not installed; the message is one line."""


@dataclass(frozen=True)
class FilterPair:
    """The filters of an encoder and of a decoder.

    Attributes:
        name: What the row is called.
        encoder: `(hidden, pixels)`.
        decoder: The decoder's weight, transposed back: same shape.
    """

    name: str
    encoder: np.ndarray
    decoder: np.ndarray

    @property
    def largest_difference(self) -> float:
        """The largest absolute difference between the two."""
        return float(np.abs(self.encoder - self.decoder).max())


@dataclass(frozen=True)
class ImageRow:
    """A row of square images `(count, side * side)`, brightness 0..1, with a label."""

    label: str
    images: np.ndarray


@dataclass(frozen=True)
class Curve:
    """One line of a plot: a value per epoch, counted from 1."""

    label: str
    values: Sequence[float]


def mosaic(images: np.ndarray, columns: int, empty: float = np.nan) -> np.ndarray:
    """Lay square images out in a grid with a gap of one pixel.

    Shapes:
        images: `(count, side * side)`; returns `(rows * (side + 1) - 1, columns * (side + 1) - 1)`.

    Example:
        >>> mosaic(np.zeros((3, 4)), columns=2).shape
        (5, 5)
    """
    count, side = len(images), round(images.shape[1] ** 0.5)
    rows = -(-count // columns)
    grid = np.full((rows * columns, side + GAP, side + GAP), float(empty))
    grid[:count, :side, :side] = images.reshape(count, side, side)
    tiled = grid.reshape(rows, columns, side + GAP, side + GAP).swapaxes(1, 2)
    return tiled.reshape(rows * (side + GAP), columns * (side + GAP))[:-GAP, :-GAP]


def filters(pairs: Sequence[FilterPair], title: str, columns: int = 4) -> bytes:
    """Draw encoder filters, decoder filters and their difference, one row per pair, on one color scale.

    The scale ends at the 99.5th percentile of the absolute weights, so that single outliers do not pale
    all others.
    """
    figure = figure_of(9, 0.9 + 2.75 * len(pairs))
    axes = np.atleast_2d(figure.subplots(len(pairs), 3))
    scale = max(float(np.quantile(np.abs([pair.encoder, pair.decoder]), 0.995)) for pair in pairs)
    colors = {"cmap": "RdBu_r", "vmin": -scale, "vmax": scale}
    for row, pair in zip(axes, pairs, strict=True):
        for axis, values in zip(row, (pair.encoder, pair.decoder, pair.encoder - pair.decoder), strict=True):
            axis.imshow(mosaic(values, columns), **colors)
            _bare(axis)
        row[0].set_ylabel(pair.name, color=INK, fontsize=10)
        row[2].set_xlabel(f"largest |difference| = {pair.largest_difference:.2g}", color=INK, fontsize=10)
    for axis, heading in zip(axes[0], HEADINGS, strict=True):
        axis.set_title(heading, color=QUIET, fontsize=10)
    figure.colorbar(axes[0, 0].images[0], ax=axes, shrink=0.4, aspect=30, extend="both", label="weight")
    return png(figure, title)


def image_rows(rows: Sequence[ImageRow], title: str) -> bytes:
    """Draw rows of images under one another, on one brightness scale 0..1."""
    figure = figure_of(10, 0.7 + 1.0 * len(rows))
    axes = np.atleast_1d(figure.subplots(len(rows), 1))
    for axis, row in zip(axes, rows, strict=True):
        axis.imshow(mosaic(row.images, len(row.images), empty=0), cmap="gray_r", vmin=0, vmax=1)
        axis.set_ylabel(row.label, rotation=0, ha="right", va="center", color=INK, fontsize=10)
        _bare(axis)
    return png(figure, title)


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


def _bare(axis: Axes) -> None:
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
