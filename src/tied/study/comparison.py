"""Figures of several seeds, compared.

Owns: the mean over seeds, and how tied against untied is worded. Must not train or lay out.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the sample standard deviation (0 for a single value)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def tied_against_untied(tied: Sequence[float], untied: Sequence[float]) -> str:
    """Word how far the mean of tied is from that of untied, whichever is higher.

    Example:
        >>> tied_against_untied([3.0], [2.0]), tied_against_untied([1.0], [1.0, 3.0])
        ('50.0% higher', '50.0% lower')
    """
    ours, theirs = statistics.fmean(tied), statistics.fmean(untied)
    return f"{abs(ours / theirs - 1):.1%} {'higher' if ours >= theirs else 'lower'}"
