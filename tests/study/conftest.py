"""One small run of the demo, shared by the tests of what is made of it."""

import pytest

from tied.study.demo.record import Plan, Record
from tied.study.demo.run import demo
from tied.study.progress import Progress

PLAN = Plan(seed=0, seeds=2, epochs=4, rounds=2)


@pytest.fixture(scope="session")
def events() -> list:
    return list(demo(PLAN))


@pytest.fixture(scope="session")
def record(events) -> Record:
    """What the findings of the run amount to; tests must not change it."""
    made = Record(PLAN)
    for event in events:
        if not isinstance(event, Progress):
            made.add(event)
    return made
