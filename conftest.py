"""What every test gets, doctests of `src` included: one seed, one thread, no traces of the test before."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch


def pytest_configure() -> None:
    """Compute on one thread, so that sums round the same way on every machine."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fresh_torch() -> Iterator[None]:
    """Seed the random numbers; afterwards put back the defaults that a test may have changed."""
    dtype, device, gradients = torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled()
    torch.manual_seed(0)
    np.random.seed(0)
    yield
    torch.set_default_dtype(dtype)
    if torch.get_default_device() != device:
        torch.set_default_device(None)
    torch.set_grad_enabled(gradients)
