"""Tools that put a layer of their own in the place of one, and hand its weight over: SyncBatchNorm, float8, QAT."""

import pytest
import torch
from torch import Tensor, nn

import tied


class Own(nn.Module):
    """What such a tool makes of a linear layer."""

    def __init__(self, old: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = old.weight, old.bias

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias)


def model(source: str) -> nn.Module:
    made = nn.ModuleDict({"e": nn.Linear(4, 4), "d": nn.Linear(4, 4)})
    tied.tie(made, "d.weight", source)
    return made


@pytest.mark.parametrize("names", [("e",), ("d",), ("e", "d"), ("d", "e")], ids="".join)
def test_an_identity_stays_one_weight(names: tuple[str, ...]) -> None:
    made = model("e.weight")
    for name in names:
        made[name] = Own(made[name])
    assert made.d.weight is made.e.weight
    assert [n for n, _ in made.named_parameters()] == ["e.weight", "e.bias", "d.bias"]
    assert [f.code for f in tied.check(made).findings if f.code == "TIE109"] == []
    tied.retie(made)
    assert [str(tie) for tie in tied.ties(made)] == ["d.weight = e.weight"]
    made.e.weight = nn.Parameter(torch.zeros(4, 4))
    assert made.d.weight is made.e.weight


def test_a_transform_is_followed_or_refused() -> None:
    made = model("e.weight.T")
    made.e = Own(made.e)
    assert torch.equal(made.d.weight, made.e.weight.T)
    with pytest.raises((ValueError, tied.KindError)):  # torch's, of a tensor with a graph
        Own(made.d)
    assert torch.equal(made.d.weight, made.e.weight.T)


def test_batch_norms_are_converted() -> None:
    made = nn.ModuleDict({"a": nn.BatchNorm2d(3), "b": nn.BatchNorm2d(3)})
    tied.tie(made, "b", "a", buffers=True)
    made = nn.SyncBatchNorm.convert_sync_batchnorm(made)
    assert made.b.weight is made.a.weight
    assert made.b.running_mean is made.a.running_mean
    assert [f.code for f in tied.check(made).findings if f.code == "TIE109"] == []
