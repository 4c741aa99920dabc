"""Pictures of samples and weights of any shape: mosaics of images, matrices of numbers, and points in a plane.

Owns: how they are laid out. Must not know models. Read next: `pictures.py`, which owns figures and colors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tied.show.pictures import COLORS, INK, QUIET, bare, figure_of, png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_IMAGES, MOST_LABELS, GAP = 64, 20, 1
SIGNED = "RdBu_r"
BOX = {"boxstyle": "round,pad=0.2", "facecolor": "white", "alpha": 0.8, "linewidth": 0}
HEADINGS = ("encoder's filters", "decoder's filters, transposed back", "difference")


@dataclass(frozen=True)
class FilterPair:
    """The filters of an encoder and of a decoder.

    Shapes:
        encoder, decoder: `(units, channels, height, width)`, or matrices `(units, columns)`; the decoder's
        transposed back, so that both are alike.

    Attributes:
        name: What the row is called.
    """

    name: str
    encoder: np.ndarray
    decoder: np.ndarray

    @property
    def drawn(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Encoder, decoder and their difference."""
        return self.encoder, self.decoder, self.encoder - self.decoder

    @property
    def largest_difference(self) -> float:
        """The largest absolute difference between the two."""
        return float(np.abs(self.drawn[2]).max())


@dataclass(frozen=True)
class Panel:
    """Samples in a row, with a label.

    Shapes:
        values: `(count, channels, height, width)`, brightness 0..1, or a matrix `(rows, columns)`.
    """

    label: str
    values: np.ndarray


def tiled(images: np.ndarray, columns: int, empty: float = np.nan) -> np.ndarray:
    """Lay images out in a grid with a gap of one pixel.

    Three channels stay colors; of another number the mean is shown.

    Shapes:
        images: `(count, channels, height, width)`; returns `(rows, columns)` or `(rows, columns, 3)`.

    Example:
        >>> tiled(np.zeros((3, 1, 2, 4)), columns=2).shape, tiled(np.zeros((3, 3, 2, 4)), columns=2).shape
        ((5, 9), (5, 9, 3))
    """
    count, channels, height, width = images.shape
    shown = np.moveaxis(images, 1, 3) if channels == 3 else images.mean(1)[..., None]
    rows = -(-count // columns)
    grid = np.full((rows * columns, height + GAP, width + GAP, shown.shape[3]), empty, dtype=float)
    grid[:count, :height, :width] = shown
    laid = grid.reshape(rows, columns, height + GAP, width + GAP, -1).swapaxes(1, 2)
    whole = laid.reshape(rows * (height + GAP), columns * (width + GAP), -1)[:-GAP, :-GAP]
    return whole if channels == 3 else whole[..., 0]


def filters(pairs: Sequence[FilterPair], title: str, columns: int = 8) -> bytes:
    """Draw encoder filters, decoder filters and their difference, one row per pair, on one scale around zero.

    The scale ends at the 99.5th percentile of the absolute weights, so that single outliers do not pale
    all others.
    """
    figure = figure_of(9, 0.9 + 2.75 * len(pairs))
    axes = np.atleast_2d(figure.subplots(len(pairs), 3))
    scale = max(float(np.quantile(np.abs(values), 0.995)) for pair in pairs for values in pair.drawn) or 1.0
    for row, pair in zip(axes, pairs, strict=True):
        for axis, values in zip(row, pair.drawn, strict=True):
            _draw_weights(axis, values, scale, columns)
        row[0].set_ylabel(pair.name, color=INK, fontsize=10)
        row[2].set_xlabel(f"largest |difference| = {pair.largest_difference:.2g}", color=INK, fontsize=10)
    for axis, heading in zip(axes[0], HEADINGS, strict=True):
        axis.set_title(heading, color=QUIET, fontsize=10)
    if not _are_colors(pairs[0].encoder):
        figure.colorbar(axes[0, 0].images[0], ax=axes, shrink=0.4, aspect=30, extend="both", label="weight")
    return png(figure, title)


def _are_colors(values: np.ndarray) -> bool:
    return values.ndim == 4 and values.shape[1] == 3


def _draw_weights(axis: Axes, values: np.ndarray, scale: float, columns: int) -> None:
    if values.ndim == 2:
        _matrix(axis, values[:MOST_IMAGES], scale)
    elif _are_colors(values):
        axis.imshow(tiled(0.5 + values[:MOST_IMAGES] / (2 * scale), columns, empty=1).clip(0, 1))
    else:
        axis.imshow(tiled(values[:MOST_IMAGES], columns), cmap=SIGNED, vmin=-scale, vmax=scale)
    bare(axis)


def _matrix(axis: Axes, values: np.ndarray, scale: float) -> None:
    axis.imshow(values, cmap=SIGNED, vmin=-scale, vmax=scale, aspect="auto", interpolation="nearest")


def samples(panels: Sequence[Panel], title: str) -> bytes:
    """Draw panels of samples under one another: images on a scale of 0 to 1, rows of numbers around zero."""
    are_images = panels[0].values.ndim == 4
    figure = figure_of(10, 0.7 + (1.05 if are_images else 1.9) * len(panels))
    scale = float(np.quantile(np.abs(panels[0].values), 0.99)) or 1.0
    for axis, panel in zip(np.atleast_1d(figure.subplots(len(panels), 1)), panels, strict=True):
        if are_images:
            axis.imshow(tiled(panel.values, len(panel.values), empty=1).clip(0, 1), cmap="gray", vmin=0, vmax=1)
        else:
            _matrix(axis, panel.values, scale)
        axis.set_ylabel(panel.label, rotation=0, ha="right", va="center", color=INK, fontsize=10)
        bare(axis)
    return png(figure, title)


@dataclass(frozen=True)
class Points:
    """Points in a plane, each with a label or none.

    Shapes:
        places: `(count, 2)`; labels: `(count,)`, integers, or empty.

    Attributes:
        heading: What stands above them.
        names: What each label is called.
    """

    heading: str
    places: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]


def planes(clouds: Sequence[Points], title: str) -> bytes:
    """Draw points side by side, each class in a color, with its name at its middle."""
    figure = figure_of(1 + 5 * len(clouds), 5.2)
    for axis, cloud in zip(np.atleast_1d(figure.subplots(1, len(clouds))), clouds, strict=True):
        labelled = len(cloud.labels) > 0 and len(cloud.names) <= MOST_LABELS
        groups = range(len(cloud.names)) if labelled else range(1)
        for group in groups:
            places = cloud.places[cloud.labels == group] if labelled else cloud.places
            axis.scatter(*places.T, s=9, alpha=0.6, linewidths=0, color=_color(group))
        for group in groups if labelled else ():
            _name(axis, cloud.places[cloud.labels == group], cloud.names[group], _color(group))
        axis.set_title(cloud.heading, color=QUIET, fontsize=10)
        bare(axis)
    return png(figure, title)


def _color(group: int) -> Any:
    from matplotlib import colormaps

    return COLORS[group] if group < len(COLORS) else colormaps["tab20"](group % MOST_LABELS)


def _name(axis: Axes, places: np.ndarray, name: str, color: Any) -> None:
    if len(places):
        left, low = map(float, np.median(places, axis=0))
        axis.text(left, low, name, color=color, fontsize=11, fontweight="bold", ha="center", va="center", bbox=BOX)
