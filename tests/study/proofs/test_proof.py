"""Bands, and what counts as proven."""

import json
import math

import pytest

from tied.study.proofs.proof import Band, Control, Measurement, Outcome, at_least, at_most, exactly

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("band", "inside", "outside", "text"),
    [
        (at_most(1e-12), [0, 1e-12, -1], [1.1e-12, INF, NAN], "≤ 1e-12"),
        (at_least(0.1), [0.1, 5], [0.09, -INF, NAN], "≥ 0.1"),
        (exactly(1), [1], [1 - 1e-15, 1 + 1e-15, NAN], "= 1"),
        (Band(0.5, 2), [0.5, 1, 2], [0.49, 2.01, NAN], "0.5 … 2"),
    ],
)
def test_band(band, inside, outside, text):
    assert all(band.holds(figure) for figure in inside)
    assert not any(band.holds(figure) for figure in outside)
    assert str(band) == text


@pytest.mark.parametrize(
    ("measured", "control", "holds", "fails"),
    [
        (0.0, 3.0, True, True),
        (2.0, 3.0, False, True),
        (0.0, 0.5, True, False),
        (0.0, NAN, True, False),
        (0.0, INF, True, False),
        (NAN, 3.0, False, True),
    ],
)
def test_a_claim_is_proven_if_it_holds_and_its_control_fails(measured, control, holds, fails):
    measurement = Measurement("it is small", measured, at_most(1), Control("made large", control))
    assert (measurement.claim_holds, measurement.control_fails) == (holds, fails)
    assert measurement.proven == (holds and fails)


def test_json():
    measurement = Measurement("it is small", 0.5, at_most(1), Control("made large", 2.0), note="It costs.")
    assert Outcome("size", measurement, 0.25).to_json() == {
        "proof": "size",
        "claim": "it is small",
        "measured": 0.5,
        "band": [None, 1],
        "control": {"what": "made large", "measured": 2.0},
        "proven": True,
        "note": "It costs.",
        "seconds": 0.25,
    }


def test_json_of_what_is_no_number_is_json():
    """JSON knows no NaN: readers in other languages refuse it."""
    lost = Outcome("size", Measurement("it is small", NAN, at_most(1), Control("made large", INF)), 0.25)
    text = json.dumps(lost.to_json(), allow_nan=False)
    assert json.loads(text)["measured"] is None
    assert json.loads(text)["control"]["measured"] is None
