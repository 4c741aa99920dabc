"""Means over seeds, and how two of them are compared in words."""

import pytest

from tied.study.comparison import mean_and_deviation, tied_against_untied


def test_mean_and_deviation():
    assert mean_and_deviation([1.0, 3.0]) == (2.0, pytest.approx(2**0.5))
    assert mean_and_deviation([1.5]) == (1.5, 0.0)


@pytest.mark.parametrize(("tied", "words"), [(3.0, "50.0% higher"), (1.0, "50.0% lower"), (2.0, "0.0% higher")])
def test_tied_against_untied_is_told_whichever_way_it_comes_out(tied, words):
    assert tied_against_untied([tied - 1, tied + 1], [2.0]) == words
