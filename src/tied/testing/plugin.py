"""The pytest plugin: the fixture `tied_guard`.

Owns: the fixture. Must not import torch before a test asks for it. Pytest finds it by the entry point `pytest11` of
the installed package.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, TypeVar

import pytest

if TYPE_CHECKING:
    from torch import nn

    from tied.binding import guard

Model = TypeVar("Model", bound="nn.Module")


FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember whether a test failed: then its guards have said enough."""
    report = yield
    item.stash[FAILED] = item.stash.get(FAILED, False) or report.failed
    return report


@pytest.fixture
def tied_guard(request: pytest.FixtureRequest) -> Iterator[Callable[[Model], Model]]:
    """Return a function that watches a model until the end of the test, and returns it.

    The operation that cuts what the model shares fails with `tied.ConflictError`.

        def test_training(tied_guard):
            model = tied_guard(build_model())
            prepare(model)
    """
    guards: list[guard] = []

    def watch(model: Model) -> Model:
        from tied.binding import guard

        guards.append(guard(model).__enter__())
        return model

    yield watch
    has_failed = request.node.stash.get(FAILED, False)
    with ExitStack() as leaving:
        for each in guards:
            leaving.callback(each.__exit__, AssertionError if has_failed else None)
