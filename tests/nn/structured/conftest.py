"""Fixtures: every structured layer, by every algorithm."""

import pytest
from structured_by_hand import SCHEMES, Scheme
from torch import nn

BY_ALGORITHM = [(scheme, algorithm) for scheme in SCHEMES for algorithm in scheme.algorithms]


@pytest.fixture(params=SCHEMES, ids=lambda scheme: scheme.name)
def scheme(request: pytest.FixtureRequest) -> Scheme:
    return request.param


@pytest.fixture(params=BY_ALGORITHM, ids=lambda case: f"{case[0].name}-{case[1]}")
def case(request: pytest.FixtureRequest) -> tuple[Scheme, nn.Module]:
    """A scheme and a new layer of it, for each algorithm that it has."""
    scheme, algorithm = request.param
    return scheme, scheme.layer(algorithm=algorithm)
