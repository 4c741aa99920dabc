"""Mosaics and planes: where each pixel lands; that pictures are drawn at all."""

import numpy as np
import pytest

from tied.show.panels import FilterPair, Panel, Points, filters, planes, samples, tiled

PNG = b"\x89PNG"


def test_tiled_gray_by_hand():
    images = np.arange(3 * 1 * 2 * 2).reshape(3, 1, 2, 2)
    laid = tiled(images, columns=2, empty=-1)
    assert laid.tolist() == [
        [0, 1, -1, 4, 5],
        [2, 3, -1, 6, 7],
        [-1, -1, -1, -1, -1],
        [8, 9, -1, -1, -1],
        [10, 11, -1, -1, -1],
    ]


def test_tiled_leaves_gaps_unless_told_otherwise():
    grid = tiled(np.arange(12).reshape(3, 1, 2, 2), columns=2)
    expected = np.full((5, 5), np.nan)
    expected[:2, :2], expected[:2, 3:], expected[3:, :2] = (
        [[0, 1], [2, 3]],
        [[4, 5], [6, 7]],
        [[8, 9], [10, 11]],
    )
    np.testing.assert_array_equal(grid, expected)


def test_tiled_keeps_fractions_beside_a_whole_number_for_empty():
    assert tiled(np.full((1, 1, 2, 2), 0.5), columns=1, empty=0).max() == 0.5


def test_tiled_colors_stay_and_other_channels_are_averaged():
    colors = np.random.default_rng(0).random((2, 3, 4, 5))
    laid = tiled(colors, columns=2)
    assert laid.shape == (4, 11, 3)
    assert np.array_equal(laid[:, 6:], np.moveaxis(colors[1], 0, 2))
    many = np.random.default_rng(0).random((1, 4, 2, 2))
    assert np.allclose(tiled(many, columns=1), many[0].mean(0))


@pytest.mark.parametrize("shape", [(5, 1, 3, 4), (5, 3, 3, 4), (100, 2, 3, 3), (6, 9), (1, 1, 1, 1)])
def test_weights_and_samples_are_drawn(shape):
    values = np.random.default_rng(0).normal(size=shape)
    assert filters([FilterPair("a", values, 0 * values)], "Weights").startswith(PNG)
    assert samples([Panel("a", values), Panel("b", values)], "Samples").startswith(PNG)


def test_weights_of_nothing_but_zeros_are_drawn():
    assert filters([FilterPair("a", np.zeros((2, 1, 3, 3)), np.zeros((2, 1, 3, 3)))], "Weights").startswith(PNG)
    assert samples([Panel("a", np.zeros((2, 3)))], "Samples").startswith(PNG)


@pytest.mark.parametrize("names", [(), ("a", "b"), tuple("abcdefghij"), tuple(map(str, range(30)))])
def test_planes_are_drawn_with_and_without_labels(names):
    labels = np.arange(40) % len(names) if names else np.empty(0, int)
    cloud = Points("tied", np.random.default_rng(0).normal(size=(40, 2)), labels, names)
    assert planes([cloud, cloud], "Codes").startswith(PNG)


def test_a_class_without_points_has_no_name():
    cloud = Points("tied", np.zeros((3, 2)), np.zeros(3, int), ("a", "b"))
    assert planes([cloud], "Codes").startswith(PNG)
