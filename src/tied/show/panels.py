"""Pictures of samples of any shape: mosaics of images, matrices of numbers, and points in a plane.

Owns: how they are laid out. Must not know models. Read next: `pictures.py`, which owns figures and colors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tied.show.pictures import COLORS, GAP, INK, QUIET, _bare, figure_of, png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_IMAGES, MOST_LABELS = 64, 20
SIGNED = "RdBu_r"


@dataclass(frozen=True)
class Panel:
    """Images or a matrix under a heading.

    Shapes:
        values: `(count, channels, height, width)`, or a matrix `(rows, columns)`.

    Attributes:
        heading: What stands above it.
        note: What stands below it.
    """

    heading: str
    values: np.ndarray
    note: str = ""


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


def weights(rows: Sequence[Sequence[Panel]], title: str, columns: int = 8) -> bytes:
    """Draw panels of weights, row under row, on one scale around zero that ends at the 99.5th percentile."""
    figure = figure_of(9.5, 0.9 + 3.1 * len(rows))
    axes = np.atleast_2d(figure.subplots(len(rows), len(rows[0])))
    scale = max(float(np.quantile(np.abs(panel.values), 0.995)) for row in rows for panel in row) or 1.0
    for row, places in zip(rows, axes, strict=True):
        for panel, axis in zip(row, places, strict=True):
            _draw_weights(axis, panel.values, scale, columns)
            axis.set_title(panel.heading, color=QUIET, fontsize=10)
            axis.set_xlabel(panel.note, color=INK, fontsize=10)
    if any(panel.values.ndim == 2 or panel.values.shape[1] != 3 for row in rows for panel in row):
        figure.colorbar(axes[0, 0].images[0], ax=axes, shrink=0.4, aspect=30, extend="both", label="weight")
    return png(figure, title)


def _draw_weights(axis: Axes, values: np.ndarray, scale: float, columns: int) -> None:
    if values.ndim == 2:
        _matrix(axis, values[:MOST_IMAGES], scale)
    elif values.shape[1] == 3:
        axis.imshow(tiled(0.5 + values[:MOST_IMAGES] / (2 * scale), columns, empty=1).clip(0, 1))
    else:
        axis.imshow(tiled(values[:MOST_IMAGES], columns), cmap=SIGNED, vmin=-scale, vmax=scale)
    _bare(axis)


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
        axis.set_ylabel(panel.heading, rotation=0, ha="right", va="center", color=INK, fontsize=10)
        _bare(axis)
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
        _bare(axis)
    return png(figure, title)


def _color(group: int) -> Any:
    from matplotlib import colormaps

    return COLORS[group] if group < len(COLORS) else colormaps["tab20"](group % MOST_LABELS)


def _name(axis: Axes, places: np.ndarray, name: str, color: Any) -> None:
    if len(places):
        box = {"boxstyle": "round,pad=0.2", "facecolor": "white", "alpha": 0.8, "linewidth": 0}
        middle = np.median(places, axis=0)
        axis.text(
            float(middle[0]),
            float(middle[1]),
            name,
            color=color,
            fontsize=11,
            fontweight="bold",
            ha="center",
            va="center",
            bbox=box,
        )
