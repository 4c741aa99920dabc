"""The pytest plugin: the fixture `tied_guard`.

Owns: the fixture. Must not import torch before a test asks for it. Pytest finds it by the entry point `pytest11` of
the installed package.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, TypeVar

import pytest

if TYPE_CHECKING:
    from torch import nn

    from tied.binding import guard

Model = TypeVar("Model", bound="nn.Module")


@pytest.fixture
def tied_guard(request: pytest.FixtureRequest) -> Iterator[Callable[[Model], Model]]:
    """Return a function that watches a model until the end of the test, and returns it.

    The operation that cuts what the model shares fails with `tied.ConflictError`.

        def test_training(tied_guard):
            model = tied_guard(build_model())
            prepare(model)
    """
    guards: list[guard] = []
    failed_before = request.session.testsfailed

    def watch(model: Model) -> Model:
        from tied.binding import guard

        guards.append(guard(model).__enter__())
        return model

    yield watch
    has_failed = request.session.testsfailed > failed_before  # then the guards have said enough
    with ExitStack() as leaving:
        for each in guards:
            leaving.callback(each.__exit__, AssertionError if has_failed else None)
