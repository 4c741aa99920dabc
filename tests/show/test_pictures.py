"""Pictures: what is drawn is what was given."""

import sys

import numpy as np
import pytest
from matplotlib.text import Text

from tied.show import panels, pictures
from tied.show.panels import FilterPair, Panel, filters, samples
from tied.show.pictures import Curve, MissingPackageError, curves

PNG = b"\x89PNG\r\n\x1a\n"


def size(png: bytes) -> tuple[int, int]:
    """Width and height in pixels, from the PNG header."""
    assert png.startswith(PNG)
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")


@pytest.fixture
def figures(monkeypatch) -> list:
    """The figures as they were just before they became bytes."""
    seen = []
    finish = pictures.png
    for module in (pictures, panels):
        monkeypatch.setattr(module, "png", lambda figure, title: seen.append(figure) or finish(figure, title))
    return seen


def test_filters_share_one_scale_and_name_the_difference(figures):
    encoder = np.linspace(-1, 1, 16 * 64).reshape(16, 1, 8, 8)
    pairs = [FilterPair("same", encoder, encoder), FilterPair("apart", encoder, encoder * 0.5)]
    assert size(filters(pairs, "Title"))[0] == 9 * pictures.DOTS_PER_INCH
    [figure] = figures
    drawn = [axis for axis in figure.axes if axis.images]
    assert len(drawn) == 6
    assert len({axis.images[0].get_clim() for axis in drawn}) == 1
    assert [drawn[2].get_xlabel(), drawn[5].get_xlabel()] == [
        "largest |difference| = 0",
        "largest |difference| = 0.5",
    ]
    assert np.nanmax(np.abs(drawn[2].images[0].get_array())) == 0


def test_samples_show_the_brightness_given(figures):
    row = Panel("half", np.full((10, 1, 8, 8), 0.5))
    samples([row, row], "Title")
    [figure] = figures
    drawn = figure.axes[0].images[0]
    assert drawn.get_clim() == (0, 1)
    assert drawn.get_array()[0, 0] == 0.5


def test_curve_labels_do_not_overlap(figures):
    lines = [Curve("one\ntwo", [3.0, 1.0]), Curve("three", [3.0, 1.001]), Curve("four", [3.0, 1.002])]
    curves(lines, "Title", ylabel="error")
    [figure] = figures
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in figure.axes[0].texts]
    assert len(boxes) == 3
    for first, second in [(0, 1), (0, 2), (1, 2)]:
        lower, upper = sorted((boxes[first], boxes[second]), key=lambda box: box.y0)
        assert lower.y1 <= upper.y0


def test_more_curves_than_colors():
    assert size(curves([Curve(str(n), [2.0, 1.0 + n]) for n in range(8)], "Title", ylabel="error"))


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingPackageError, match=r"^Pictures need matplotlib: pip install 'tied\[pictures\]'$"):
        curves([Curve("x", [1.0])], "Title", ylabel="error")
