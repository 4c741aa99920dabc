"""`TiedLinear` is `F.linear(x, encoder.weight.T, bias)`, whatever becomes of the encoder."""

import copy
import io
import math
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import tied
from tied.nn import TiedLinear


class Pair(nn.Module):
    """An encoder and the layer under test, registered side by side."""

    def __init__(self, bias: bool = True, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.encoder = nn.Linear(6, 4, dtype=dtype)
        self.decoder = TiedLinear(self.encoder, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decoder(torch.tanh(self.encoder(x)))


def by_hand(x, weight, encoder_bias, decoder_bias):
    return F.linear(torch.tanh(F.linear(x, weight, encoder_bias)), weight.t(), decoder_bias)


def leaves(model: Pair) -> list[torch.Tensor]:
    """The model's three parameters as new leaves, in the order of `by_hand`."""
    owned = (model.encoder.weight, model.encoder.bias, model.decoder.bias)
    return [parameter.detach().clone().requires_grad_() for parameter in owned]


def assert_follows(model: Pair) -> None:
    """Change the encoder's weight in place and look for the change in the decoder."""
    with torch.no_grad():
        model.encoder.weight.fill_(0.25)
    assert torch.equal(model.decoder.weight, model.encoder.weight.t())
    assert model.decoder.weight.dtype == model.encoder.weight.dtype


def test_forward_and_gradient():
    model, x = Pair(), torch.randn(5, 6, dtype=torch.float64)
    reference = leaves(model)
    expected = by_hand(x, *reference)
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-15)
    model(x).square().sum().backward()
    expected.square().sum().backward()
    found = (model.encoder.weight, model.encoder.bias, model.decoder.bias)
    for parameter, leaf in zip(found, reference, strict=True):
        torch.testing.assert_close(parameter.grad, leaf.grad, rtol=0, atol=1e-12)


def test_twenty_steps_of_adamw():
    model, x = Pair(), torch.randn(20, 5, 6, dtype=torch.float64)
    reference = leaves(model)
    optimizers = [torch.optim.AdamW(held, lr=0.05, weight_decay=0.1) for held in (model.parameters(), reference)]
    for batch in x:
        for optimizer, output in zip(optimizers, (model, lambda x: by_hand(x, *reference)), strict=True):
            optimizer.zero_grad()
            (output(batch) - batch).square().mean().backward()
            nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 0.1)
            optimizer.step()
    torch.testing.assert_close(model.encoder.weight, reference[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(model.decoder.weight, reference[0].t(), rtol=0, atol=1e-12)
    torch.testing.assert_close(model.decoder.bias, reference[2], rtol=0, atol=1e-12)


def test_owns_its_bias_only():
    model = Pair()
    assert [name for name, _ in model.decoder.named_parameters()] == ["bias"]
    assert not list(model.decoder.children())
    assert list(model.state_dict()) == ["encoder.weight", "encoder.bias", "decoder.bias"]
    assert [str(tie) for tie in tied.ties(model)] == ["decoder.weight = encoder.weight.T"]


def test_features_are_the_encoders_turned_round():
    layer = TiedLinear(nn.Linear(6, 4))
    assert (layer.in_features, layer.out_features) == (4, 6)
    assert repr(layer) == "TiedLinear(in_features=4, out_features=6, bias=True, weight=encoder.weight.T)"
    assert isinstance(layer, nn.Linear)


def test_without_bias():
    layer = TiedLinear(nn.Linear(6, 4), bias=False)
    assert layer.bias is None
    assert not list(layer.parameters())
    assert layer(torch.ones(2, 4)).shape == (2, 6)


def test_embedding():
    embedding = nn.Embedding(10, 3)
    layer = TiedLinear(embedding)
    assert (layer.in_features, layer.out_features) == (10, 3)
    torch.testing.assert_close(layer(torch.eye(10)), embedding.weight + layer.bias)


def test_bias_starts_within_the_bound_of_the_transposed_fan_in():
    layer = TiedLinear(nn.Linear(20_000, 16))
    bound = 1 / math.sqrt(16)
    assert layer.bias.abs().max() <= bound
    assert layer.bias.abs().max() > 0.99 * bound


def test_reset_leaves_the_encoder_alone():
    model = Pair()
    weight, bias = model.encoder.weight.detach().clone(), model.decoder.bias.detach().clone()
    model.decoder.reset_parameters()
    assert torch.equal(model.encoder.weight, weight)
    assert not torch.equal(model.decoder.bias, bias)


def test_bias_takes_device_and_dtype_from_the_encoder():
    assert TiedLinear(nn.Linear(6, 4, dtype=torch.bfloat16)).bias.dtype == torch.bfloat16
    assert TiedLinear(nn.Linear(6, 4, device="meta")).bias.device.type == "meta"
    assert TiedLinear(nn.Linear(6, 4), dtype=torch.float64).bias.dtype == torch.float64


def test_complex_weights():
    layer = TiedLinear(nn.Linear(3, 2, dtype=torch.complex64), bias=False)
    assert layer(torch.ones(2, dtype=torch.complex64)).dtype == torch.complex64


def test_deepcopy_of_the_model():
    model = Pair()
    twin = copy.deepcopy(model)
    assert_follows(twin)
    assert not torch.equal(model.decoder.weight, twin.decoder.weight)


def test_deepcopy_of_the_layer_alone_gets_a_weight_of_its_own():
    model = Pair()
    alone = copy.deepcopy(model.decoder)
    assert torch.equal(alone.weight, model.decoder.weight)
    with pytest.warns(tied.TieWarning) as said:
        assert {name for name, _ in alone.named_parameters()} == {"weight", "bias"}
    assert [str(each.message) for each in said] == [
        "This TiedLinear was copied without the source of weight = encoder.weight.T: 'weight' is a Parameter of its "
        "own in the copy, which the original does not list. Copy the model that holds both, or call tied.untie(model, "
        "target) before."
    ]
    assert len([*alone.parameters()]) == 2, "it is said once"


def test_pickle_and_save():
    assert_follows(pickle.loads(pickle.dumps(Pair())))
    stream = io.BytesIO()
    torch.save(Pair(), stream)
    stream.seek(0)
    assert_follows(torch.load(stream, weights_only=False))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_change_of_dtype(dtype):
    assert_follows(Pair().to(dtype))


@pytest.mark.parametrize("assign", [False, True])
def test_state_dict_both_ways(assign):
    source, model = Pair(), Pair()
    assert list(model.load_state_dict(source.state_dict(), strict=True, assign=assign)) == [[], []]
    assert torch.equal(model.decoder.weight, source.encoder.weight.t())
    assert_follows(model)


def test_new_parameter_in_the_encoder_is_followed():
    model = Pair()
    model.encoder.weight = nn.Parameter(torch.ones(4, 6, dtype=torch.float64))
    assert torch.equal(model.decoder.weight, torch.ones(6, 4, dtype=torch.float64))


def test_computed_weight_of_the_encoder_is_followed():
    model = Pair()
    nn.utils.parametrizations.weight_norm(model.encoder)
    with torch.no_grad():
        model.encoder.parametrizations.weight.original0.mul_(2)
    assert torch.equal(model.decoder.weight, model.encoder.weight.t())


def test_compiles_without_breaks():
    model, x = Pair(dtype=torch.float32), torch.randn(5, 6)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))


NOT_A_MATRIX = """\
TiedLinear(Conv1d)
  The encoder's weight is not a matrix.
  found:    Conv1d.weight of shape (4, 6, 3)
  expected: a weight of shape (out, in)
  fix:      for other shapes declare the tie yourself: tied.tie(model, target, source)
The model was not changed."""

NO_WEIGHT = """\
TiedLinear(Sequential)
  The encoder has no tensor called 'weight'.
  found:    Sequential.weight is NoneType
  expected: a module with a weight of shape (out, in), such as nn.Linear
  fix:      pass the layer itself: TiedLinear(model.encoder)
The model was not changed."""


LAZY = """\
TiedLinear(LazyLinear)
  The weight has no shape yet.
  found:    the parameter of a lazy module
  expected: an initialized one
  fix:      run one forward through its module first
The model was not changed."""

INTEGERS = """\
TiedLinear(Linear)
  The weight holds no floating-point numbers, so it cannot be trained.
  found:    torch.int8
  expected: a floating-point dtype
  fix:      convert it first: weight.float()
The model was not changed."""


def of_integers() -> nn.Module:
    layer = nn.Linear(3, 4)
    layer.weight = nn.Parameter(torch.ones(4, 3, dtype=torch.int8), requires_grad=False)
    return layer


@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize(
    ("encoder", "error", "message"),
    [
        (nn.Conv1d(6, 4, 3), tied.ShapeError, NOT_A_MATRIX),
        (nn.Sequential(nn.Linear(6, 4)), tied.KindError, NO_WEIGHT),
        (nn.LazyLinear(4), tied.KindError, LAZY),
        (of_integers(), tied.DtypeError, INTEGERS),
    ],
)
def test_wrong_encoder(encoder, error, message):
    with pytest.raises(error) as caught:
        TiedLinear(encoder)
    assert str(caught.value) == message


ELSEWHERE = """\
TiedLinear.forward(input)
  Input and weight live on different devices.
  found:    an input on cpu
  expected: meta, where the weight is
  fix:      input.to('meta'), or move the model
The model was not changed."""


def test_an_input_on_another_device():
    """Without a bias torch 2.13 multiplies by a matrix on meta in silence, and returns what memory held."""
    layer = TiedLinear(nn.Linear(6, 4, device="meta"), bias=False)
    with pytest.raises(tied.DeviceError) as caught:
        layer(torch.ones(2, 4))
    assert str(caught.value) == ELSEWHERE
    assert layer(torch.ones(2, 4, device="meta")).shape == (2, 6)
