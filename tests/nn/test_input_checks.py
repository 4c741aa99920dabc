"""Inputs that do not fit: every layer that computes itself says so in the one template, in place of torch's error."""

import numpy as np
import pytest
import torch
from torch import nn

import tied
from tied.nn import (
    CirculantLinear,
    GroupedAttention,
    GroupedLinear,
    RevIN,
    TiedAutoencoder,
    TiedConvTranspose1d,
    TiedConvTranspose2d,
    TiedConvTranspose3d,
    TiedEmbedding,
    TiedLinear,
)

LAYERS = {
    "TiedLinear": (lambda: TiedLinear(nn.Linear(6, 4)), (2, 4)),
    "TiedConvTranspose1d": (lambda: TiedConvTranspose1d(nn.Conv1d(3, 5, 3)), (2, 5, 6)),
    "TiedConvTranspose2d": (lambda: TiedConvTranspose2d(nn.Conv2d(3, 5, 3)), (2, 5, 6, 6)),
    "TiedConvTranspose3d": (lambda: TiedConvTranspose3d(nn.Conv3d(3, 5, 3)), (2, 5, 6, 6, 6)),
    "TiedAutoencoder": (lambda: TiedAutoencoder((6, 4)), (2, 6)),
    "TiedAutoencoder.decode": (lambda: TiedAutoencoder((6, 4)), (2, 4)),
    "TiedEmbedding.logits": (lambda: TiedEmbedding(10, 4), (2, 4)),
    "GroupedLinear": (lambda: GroupedLinear(8, (4, 2), 2), (2, 8)),
    "GroupedAttention": (lambda: GroupedAttention(8, 4, 2), (2, 3, 8)),
    "CirculantLinear": (lambda: CirculantLinear(4), (2, 4)),
    "RevIN": (lambda: RevIN(4), (2, 6, 4)),
}


def wider(x: torch.Tensor, name: str) -> torch.Tensor:
    axis = 1 if "Conv" in name else -1
    return torch.cat((x, x), axis)


BAD = {
    "twice as wide": (tied.ShapeError, wider),
    "no axes": (tied.ShapeError, lambda x, name: x.sum()),
    "integers": (tied.DtypeError, lambda x, name: x.long()),
    "complex": (tied.DtypeError, lambda x, name: x.to(torch.complex64)),
    "double": (tied.DtypeError, lambda x, name: x.double()),
    "elsewhere": (tied.DeviceError, lambda x, name: x.to("meta")),
    "nothing": (tied.KindError, lambda x, name: None),
    "a list": (tied.KindError, lambda x, name: x.tolist()),
}
FINE = {"RevIN": ("double",), "TiedEmbedding.logits": ("elsewhere", "nothing", "a list")}


def call(name: str, layer: nn.Module, x: object) -> object:
    method = name.partition(".")[2]
    return getattr(layer, method)(x) if method else layer(x)


@pytest.mark.parametrize("name", LAYERS)
def test_an_input_that_does_not_fit(name, golden):
    make, shape = LAYERS[name]
    layer, x, said = make(), torch.randn(shape), []
    call(name, layer, x)
    for what, (kind, spoil) in BAD.items():
        if what in FINE.get(name, ()):
            continue
        with pytest.raises(tied.TieError) as caught:
            call(name, layer, spoil(x, name))
        assert type(caught.value) is kind, what
        said.append(f"# {what}\n{kind.__name__}: {caught.value}\n")
    golden(f"input_errors/{name}.txt", "\n".join(said))


def test_words_that_are_none():
    emb = TiedEmbedding(10, 4)
    for words, found in ((torch.rand(3), "a tensor of torch.float32"), ([1, 2], "a list")):
        with pytest.raises(tied.DtypeError, match="The input holds no words") as caught:
            emb(words)
        assert f"found:    {found}" in str(caught.value)


def test_an_error_of_another_cause_comes_as_it_is():
    layer = TiedLinear(nn.Linear(6, 4))
    layer.bias = nn.Parameter(torch.zeros(5))
    with pytest.raises(RuntimeError, match=r"expand|size"):
        layer(torch.randn(2, 4))


@pytest.mark.parametrize("sizes", [6, None, (), (6,), "6", (6, 4.0), (6, 0)])
def test_sizes_of_no_autoencoder(sizes):
    with pytest.raises(tied.ShapeError, match="The sizes describe no autoencoder"):
        TiedAutoencoder(sizes)


@pytest.mark.parametrize("decay", ["a", None, 1.0, -0.1])
def test_decays_that_are_none(decay):
    with pytest.raises(tied.ShapeError, match="The decay is outside its range"):
        tied.nn.EMA(nn.Linear(2, 2), decay=decay)


def test_a_decay_may_be_any_real_number():
    """A number of numpy's is one too."""
    for decay in (0, 0.5, np.float32(0.5), np.float64(0.5)):
        assert tied.nn.EMA(nn.Linear(2, 2), decay=decay).decay == decay
