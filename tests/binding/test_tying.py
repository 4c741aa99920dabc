"""The line that everyone tries first, inside `tied.tying`."""

import pytest
import torch
from snapshot import refused
from stack import Stack
from torch import nn

import tied


@pytest.fixture
def model() -> Stack:
    return Stack()


def test_the_line_works(model: Stack) -> None:
    with tied.tying(model) as m:
        m.decoder.weight = m.encoder.weight.T
        m.head.weight = m.embed.weight
    assert [str(t) for t in tied.ties(model)] == ["decoder.weight = encoder.weight.T", "head.weight = embed.weight"]


def test_nothing_happens_before_the_end(model: Stack) -> None:
    with tied.tying(model) as m:
        m.decoder.weight = m.encoder.weight.T
        assert tied.ties(model) == ()


def test_none_takes_effect_if_the_block_raises(model: Stack) -> None:
    with refused(model, ZeroDivisionError), tied.tying(model) as m:
        m.decoder.weight = m.encoder.weight.T
        _ = 1 / 0


def test_none_takes_effect_if_one_fails(model: Stack) -> None:
    message = """
tying(model)
  'embed.weight' does not have the shape of 'decoder.weight'.
  found:    shape (9, 4)
  expected: shape (6, 4)
  fix:      did you mean 'embed.weight[:6]'?
The model was not changed."""
    with refused(model, tied.ShapeError, message), tied.tying(model) as m:
        m.head.weight = m.embed.weight
        m.decoder.weight = m.embed.weight


def test_modules_lists_and_loops(model: Stack) -> None:
    with tied.tying(model) as m:
        for layer in m.layers[1:]:
            layer.mlp = m.layers[0].mlp
        m.layers[-1].norm.bias = m.layers[0].norm.bias
    names = [str(t) for t in tied.ties(model)]
    assert names == [
        "layers.1.mlp.weight = layers.0.mlp.weight",
        "layers.1.mlp.bias = layers.0.mlp.bias",
        "layers.2.mlp.weight = layers.0.mlp.weight",
        "layers.2.mlp.bias = layers.0.mlp.bias",
        "layers.2.norm.bias = layers.0.norm.bias",
    ]


def test_assigning_a_child_of_a_list(model: Stack) -> None:
    with tied.tying(model) as m:
        m.layers[2] = m.layers[0]
    assert len(tied.ties(model)) == 4
    assert repr(model.layers[2].mlp).endswith("weight=0.mlp.weight, bias=0.mlp.bias)")


def test_torch_functions_and_operators(model: Stack) -> None:
    with tied.tying(model) as m:
        m.head.weight = torch.cat([2 * m.embed.weight[:3], -m.decoder.weight], 0)
        m.bias = m.theta.softplus()[:6]
    assert [str(t) for t in tied.ties(model)] == [
        "bias = theta.softplus()[:6]",
        "head.weight = cat([2 * embed.weight[:3], -decoder.weight], 0)",
    ]


def test_gather_by_a_buffer(model: Stack) -> None:
    with tied.tying(model) as m:
        m.decoder.weight = m.theta[m.index]
    assert torch.equal(model.decoder.weight, model.theta[model.index])


def test_a_submodule_named_like_a_transform() -> None:
    model = nn.ModuleDict({"T": nn.Linear(3, 2), "flip": nn.Linear(2, 3)})
    with tied.tying(model) as m:
        m.flip.weight = m.T.weight.T
    assert [str(t) for t in tied.ties(model)] == ["flip.weight = T.weight.T"]


REFUSED = {
    "tensor": (lambda m: setattr(m.decoder, "weight", torch.zeros(6, 4)), tied.KindError),
    "number": (lambda m: setattr(m.decoder, "weight", 0), tied.KindError),
    "unknown target": (lambda m: setattr(m.decoder, "wieght", m.encoder.weight.T), tied.AddressError),
    "unknown source": (lambda m: m.encodr.weight, tied.AddressError),
    "tensor in expression": (lambda m: m.encoder.weight + torch.zeros(4, 6), tied.KindError),
    "tensor on the left": (lambda m: torch.zeros(4, 6) + m.encoder.weight, tied.KindError),
    "bad arguments": (lambda m: m.encoder.weight.transpose(0), tied.ParseError),
    "negative step": (lambda m: m.encoder.weight[::-1], tied.ParseError),
    "unknown function": (lambda m: torch.fft.fft(m.encoder.weight), tied.KindError),
    "a number added": (lambda m: m.encoder.weight + 1, tied.KindError),
    "itself": (lambda m: setattr(m.theta_owner, "theta", 2 * m.theta_owner.theta), tied.CycleError),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(model: Stack, name: str) -> None:
    model.theta_owner = nn.Module()
    model.theta_owner.theta = nn.Parameter(torch.zeros(2))
    act, error = REFUSED[name]
    with refused(model, error), tied.tying(model) as m:
        act(m)


def test_in_place_arithmetic_is_a_cycle(model: Stack) -> None:
    with refused(model, tied.CycleError), tied.tying(model) as m:
        m.encoder.weight *= 2


def test_the_stand_in_shows_what_it_stands_for(model: Stack) -> None:
    with tied.tying(model) as m:
        assert repr(m.layers[0].mlp) == "<layers.0.mlp of Stack, in tied.tying>"
        assert len(m.layers) == 3
        assert str(m.encoder.weight.T) == "encoder.weight.T"
