"""The shipped digits are scikit-learn's, to the bit, with their license."""

from importlib import resources

import numpy as np
import torch
from sklearn.datasets import load_digits

from tied.study.digits import load, raw, split


def test_equal_to_scikit_learn():
    images, labels = raw()
    expected = load_digits()
    assert images.dtype == labels.dtype == np.uint8
    np.testing.assert_array_equal(images, expected.images)
    np.testing.assert_array_equal(labels, expected.target)


def test_file_is_small_and_has_its_license_beside_it():
    folder = resources.files("tied.study") / "data"
    assert len((folder / "digits.npz").read_bytes()) < 61_440
    text = (folder / "LICENSE.txt").read_text()
    for words in ("E. Alpaydin", "C. Kaynak", "10.24432/C50P49", "CC BY 4.0", "scikit-learn"):
        assert words in text


def test_brightness_is_between_0_and_1():
    digits = load(torch.float64)
    assert digits.images.shape == (1797, 64)
    assert (digits.images.min(), digits.images.max()) == (0, 1)
    np.testing.assert_array_equal(digits.images * 16, load_digits().data)


def test_split_is_two_thirds_and_one_third_of_different_images():
    digits = load()
    training, held_out = split(digits, seed=1)
    assert (len(training), len(held_out)) == (1198, 599)
    together = torch.cat([training.images, held_out.images])
    assert torch.equal(together.sort(0).values, digits.images.sort(0).values)


def test_split_depends_on_the_seed_only():
    digits = load()
    assert torch.equal(split(digits, 1)[1].labels, split(digits, 1)[1].labels)
    assert not torch.equal(split(digits, 1)[1].labels, split(digits, 2)[1].labels)
