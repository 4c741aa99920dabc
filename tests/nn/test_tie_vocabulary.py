"""`tie_vocabulary` shares one matrix between two embeddings and a head."""

import pytest
import torch
from snapshot import refused
from torch import nn

import tied
from tied.nn import tie_vocabulary


def model(encoder: int = 9, decoder: int = 9, head: int = 9, width: int = 4) -> nn.Module:
    parts = {"src": nn.Embedding(encoder, 4), "tgt": nn.Embedding(decoder, width), "out": nn.Linear(4, head)}
    return nn.ModuleDict({"net": nn.ModuleDict(parts), "act": nn.ReLU(), "conv": nn.Conv1d(9, 4, 1)})


def test_three_ways():
    net = model()
    made = tie_vocabulary(net, "net.src", "net.tgt", "net.out")
    assert [str(tie) for tie in made] == ["net.tgt.weight = net.src.weight", "net.out.weight = net.src.weight"]
    assert tied.ties(net) == made
    assert net["net"]["tgt"].weight is net["net"]["src"].weight
    assert [name for name, _ in net["net"].named_parameters()] == ["src.weight", "out.bias"]


def test_a_padded_vocabulary_is_cut():
    net = model(encoder=12, decoder=12, head=9)
    made = tie_vocabulary(net, "net.src", "net.tgt", "net.out")
    assert str(made[1]) == "net.out.weight = net.src.weight[:9]"
    assert net["net"]["out"](torch.zeros(4)).shape == (9,)


def test_gradient_is_the_sum_over_three_uses():
    net = model()["net"].double()
    tie_vocabulary(net, "src", "tgt", "out")
    words = net["src"].weight.detach().clone().requires_grad_()
    tokens = torch.tensor([0, 3, 3, 8])
    hidden = lambda w: torch.tanh(w[tokens] + w[tokens.flip(0)])  # noqa: E731
    (hidden(words) @ words.t() + net["out"].bias.detach()).square().sum().backward()
    net["out"](torch.tanh(net["src"](tokens) + net["tgt"](tokens.flip(0)))).square().sum().backward()
    torch.testing.assert_close(net["src"].weight.grad, words.grad, rtol=0, atol=1e-11)


def test_addresses_with_brackets():
    net = nn.ModuleDict({"embed": nn.ModuleList([nn.Embedding(9, 4), nn.Embedding(9, 4)]), "out": nn.Linear(4, 9)})
    made = tie_vocabulary(net, "embed[0]", "embed[1]", "out")
    assert [str(tie) for tie in made] == ["embed.1.weight = embed.0.weight", "out.weight = embed.0.weight"]


def test_a_compiled_model():
    net = model()
    assert len(tie_vocabulary(torch.compile(net, backend="eager"), "net.src", "net.tgt", "net.out")) == 2
    assert len(tied.ties(net)) == 2


LARGER = """\
tie_vocabulary(model, 'net.src', 'net.tgt', 'net.out')
  'net.out' has more words than the encoder.
  found:    11 words, and 9 in 'net.src'
  expected: the largest vocabulary in the encoder
  fix:      give the encoder's embedding as many words
The model was not changed."""

NO_MATRIX = """\
tie_vocabulary(model, 'net.src', 'net.tgt', '{0}')
  '{0}' has no matrix called 'weight'.
  found:    {1}
  expected: an nn.Embedding, an nn.Linear, or another module with a weight of shape (words, width)
  fix:      name the module: tie_vocabulary(model, 'encoder.embed', 'decoder.embed', 'head')
The model was not changed."""


@pytest.mark.parametrize(
    ("net", "head", "error", "message"),
    [
        (model(head=11), "net.out", tied.ShapeError, LARGER),
        (model(), "act", tied.KindError, NO_MATRIX.format("act", "ReLU")),
        (model(), "conv", tied.KindError, NO_MATRIX.format("conv", "Conv1d")),
        (model(), "net.out.weight", tied.KindError, NO_MATRIX.format("net.out.weight", "Linear")),
        (model(), "net.oot", tied.AddressError, None),
        (model(width=5), "net.out", tied.ShapeError, None),
    ],
)
def test_wrong_use(net, head, error, message):
    with refused(net, error, message):
        tie_vocabulary(net, "net.src", "net.tgt", head)
