"""What a model is, bit for bit, so that a test can say that a failed call changed nothing."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from torch import nn

import tied


def snapshot(model: nn.Module) -> list[tuple[object, ...]]:
    """Return classes, slots and their order, identities, versions, hooks and ties of a model."""
    rows: list[tuple[object, ...]] = [("ties", tied.ties(model))]
    for path, module in model.named_modules():
        rows.append((path, type(module), id(module), sorted(module.__dict__), len(module._load_state_dict_pre_hooks)))
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            version = None if tensor is None else (id(tensor), tensor._version, tensor.data_ptr(), tensor.requires_grad)
            rows.append((path, name, version))
    return rows


@contextmanager
def refused(model: nn.Module, error: type[Exception], message: str | None = None) -> Iterator[None]:
    """Check that the block raises, with exactly this message, and leaves the model as it was."""
    before = snapshot(model)
    with pytest.raises(error) as caught:
        yield
    assert snapshot(model) == before
    if message is not None:
        assert str(caught.value) == message.strip("\n")
