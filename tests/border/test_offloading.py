"""Values that live elsewhere between forwards: accelerate's offloading, under a tie of each kind.

The oracle is the same model before it was offloaded; for an identity it is the plain twin's too.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tied

accelerate = pytest.importorskip("accelerate")

TIES = [
    "{}.weight",
    "2 * {}.weight",
    "{}.weight.T",
    "{}.weight.flatten()[index].reshape(6, 6)",
    "{}.weight @ {}.weight",
]


class Model(nn.Module):
    """A source before its target, or behind it."""

    def __init__(self, tie: str, *, bias: bool, first: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(6, 6, bias=bias), nn.Linear(6, 6, bias=bias)
        self.register_buffer("index", torch.randperm(36).reshape(6, 6))
        source, target = ("a", "b") if first else ("b", "a")
        tied.tie(self, f"{target}.weight", tie.replace("{}", source))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))


OFFLOADS: dict[str, Callable[[nn.Module, Path], nn.Module]] = {
    "cpu_offload": lambda model, folder: accelerate.cpu_offload(model, execution_device="cpu") or model,
    "disk_offload": lambda model, folder: accelerate.disk_offload(model, folder, execution_device="cpu") or model,
}


@pytest.mark.parametrize("first", [True, False], ids=["source first", "target first"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("tie", TIES)
@pytest.mark.parametrize("how", OFFLOADS)
def test_offloaded_models_compute_the_same(how: str, tie: str, bias: bool, first: bool, tmp_path: Path) -> None:
    model = Model(tie, bias=bias, first=first).eval()
    x = torch.randn(5, 6)
    expected = model(x).detach()
    offloaded = OFFLOADS[how](model, tmp_path)
    for _ in range(2):
        torch.testing.assert_close(offloaded(x).detach(), expected, rtol=1e-6, atol=1e-6)
    assert all(parameter.is_meta for parameter in model.parameters())


def test_a_model_on_meta_stays_there() -> None:
    model = Model("{}.weight.T", bias=True, first=True).to("meta")
    assert model.b.weight.is_meta
