"""`TiedAutoencoder` is the hand-written tied autoencoder, at any depth."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import tied
from tied.nn import TiedAutoencoder

SHAPES = [(6, 4), (6, 4, 3), (6, 5, 4, 3)]
BY_NAME = {"tanh": torch.tanh, "relu": torch.relu, "sigmoid": torch.sigmoid, "linear": lambda x: x}


def built(sizes=(6, 4, 3), activation="tanh", **options) -> TiedAutoencoder:
    return TiedAutoencoder(sizes, activation, dtype=torch.float64, **options)


def leaves(model: TiedAutoencoder) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone().requires_grad_() for name, value in model.named_parameters()}


def by_hand(x, parameters, depth, activation):
    """The formula, with one weight per pair of layers."""
    act = BY_NAME[activation]
    for layer in range(depth):
        name = f"encoder.{2 * layer}"
        x = act(F.linear(x, parameters[f"{name}.weight"], parameters[f"{name}.bias"]))
    for layer in range(depth):
        weight = parameters[f"encoder.{2 * (depth - 1 - layer)}.weight"]
        x = F.linear(x, weight.t(), parameters[f"decoder.{2 * layer}.bias"])
        x = x if layer == depth - 1 else act(x)
    return x


def assert_follows(model: TiedAutoencoder) -> None:
    """Change every encoder weight in place and look for the change in the decoder."""
    encoder = [layer for layer in model.encoder if isinstance(layer, nn.Linear)]
    decoder = [layer for layer in model.decoder if isinstance(layer, nn.Linear)]
    for layer, mirrored in zip(encoder, reversed(decoder), strict=True):
        with torch.no_grad():
            layer.weight.copy_(torch.randn(layer.weight.shape))
        assert torch.equal(mirrored.weight, layer.weight.t())


@pytest.mark.parametrize("activation", BY_NAME)
@pytest.mark.parametrize("sizes", SHAPES)
def test_forward_and_gradient(sizes, activation):
    model, x = built(sizes, activation), torch.randn(5, 6, dtype=torch.float64)
    reference = leaves(model)
    expected = by_hand(x, reference, len(sizes) - 1, activation)
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-14)
    (model(x) - x).square().sum().backward()
    (expected - x).square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, reference[name].grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sizes", SHAPES)
def test_twenty_steps_of_adamw(sizes):
    model, batches = built(sizes), torch.randn(20, 5, 6, dtype=torch.float64)
    reference = leaves(model)
    outputs = [model, lambda x: by_hand(x, reference, len(sizes) - 1, "tanh")]
    optimizers = [
        torch.optim.AdamW(held, lr=0.05, weight_decay=0.1) for held in (model.parameters(), reference.values())
    ]
    for batch in batches:
        for optimizer, output in zip(optimizers, outputs, strict=True):
            optimizer.zero_grad()
            (output(batch) - batch).square().mean().backward()
            nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 0.1)
            optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, reference[name], rtol=0, atol=1e-12)


def test_encode_and_decode_are_the_halves_of_forward():
    model, x = built(), torch.randn(2, 5, 6, dtype=torch.float64)
    assert model.encode(x).shape == (2, 5, 3)
    assert torch.equal(model.decode(model.encode(x)), model(x))


def test_weights_are_counted_and_stored_once():
    model = built((6, 5, 4))
    assert list(model.state_dict()) == [
        "encoder.0.weight",
        "encoder.0.bias",
        "encoder.2.weight",
        "encoder.2.bias",
        "decoder.0.bias",
        "decoder.2.bias",
    ]
    assert sum(p.numel() for p in model.parameters()) == 6 * 5 + 5 * 4 + (5 + 4) + (5 + 6)


def test_repr_shows_the_ties():
    assert repr(TiedAutoencoder((6, 5, 4), "relu")) == REPR
    assert [str(tie) for tie in tied.ties(built((6, 5, 4)))] == [
        "decoder.0.weight = encoder.2.weight.T",
        "decoder.2.weight = encoder.0.weight.T",
    ]


REPR = """\
TiedAutoencoder(
  (encoder): Sequential(
    (0): Linear(in_features=6, out_features=5, bias=True)
    (1): ReLU()
    (2): Linear(in_features=5, out_features=4, bias=True)
    (3): ReLU()
  )
  (decoder): Sequential(
    (0): Linear(in_features=4, out_features=5, bias=True, weight=encoder.2.weight.T)
    (1): ReLU()
    (2): Linear(in_features=5, out_features=6, bias=True, weight=encoder.0.weight.T)
  )
)"""


def test_untied_twin_has_the_same_interface_and_the_same_encoder():
    torch.manual_seed(3)
    model = built((6, 5, 4))
    torch.manual_seed(3)
    twin = built((6, 5, 4), tie=False)
    assert tied.ties(twin) == ()
    assert [(name, type(module)) for name, module in twin.encoder.named_modules()] == [
        (name, type(module)) for name, module in model.encoder.named_modules()
    ]
    for layer, other in ((model.encoder[0], twin.encoder[0]), (model.encoder[2], twin.encoder[2])):
        assert torch.equal(layer.weight, other.weight)
    assert set(twin.state_dict()) - set(model.state_dict()) == {"decoder.0.weight", "decoder.2.weight"}
    assert not torch.equal(twin.decoder[2].weight, twin.encoder[0].weight.t())
    assert twin(torch.ones(2, 6, dtype=torch.float64)).shape == (2, 6)


def test_without_bias():
    model = built(bias=False)
    assert list(model.state_dict()) == ["encoder.0.weight", "encoder.2.weight"]


def test_activation_may_be_a_class():
    assert isinstance(TiedAutoencoder((6, 4), nn.Mish).encoder[1], nn.Mish)


def test_reset_draws_everything_anew_within_xaviers_bound():
    model = TiedAutoencoder((400, 100))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7)
    model.reset_parameters()
    bound = (6 / 500) ** 0.5
    assert 0.99 * bound < model.encoder[0].weight.abs().max() <= bound
    assert 0.9 / 20 < model.encoder[0].bias.abs().max() <= 1 / 20
    assert 0.9 / 10 < model.decoder[0].bias.abs().max() <= 1 / 10


def test_meta_then_empty_then_reset():
    model = TiedAutoencoder((6, 4, 3), device="meta").to_empty(device="cpu")
    model.reset_parameters()
    assert torch.isfinite(model(torch.ones(2, 6))).all()
    assert_follows(model)


def test_deepcopy():
    model = built()
    twin = copy.deepcopy(model)
    before = model.decoder[2].weight.detach().clone()
    assert_follows(twin)
    assert torch.equal(model.decoder[2].weight, before)


def test_pickle_and_save():
    assert_follows(pickle.loads(pickle.dumps(built())))
    stream = io.BytesIO()
    torch.save(built(), stream)
    stream.seek(0)
    assert_follows(torch.load(stream, weights_only=False))


@pytest.mark.parametrize("assign", [False, True])
def test_state_dict_both_ways(assign):
    source, model = built(), built()
    assert list(model.load_state_dict(source.state_dict(), strict=True, assign=assign)) == [[], []]
    x = torch.randn(5, 6, dtype=torch.float64)
    assert torch.equal(model(x), source(x))
    assert_follows(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_change_of_dtype(dtype):
    model = built().to(dtype)
    assert model.decoder[0].weight.dtype == dtype
    assert_follows(model)


def test_compiles_without_breaks():
    model, x = TiedAutoencoder((6, 4, 3), "tanh"), torch.randn(5, 6)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.parametrize(
    ("sizes", "activation", "error", "words"),
    [
        ((6,), "relu", tied.ShapeError, "found:    sizes=(6,)"),
        ((), "relu", tied.ShapeError, "found:    sizes=()"),
        ((6, 0), "relu", tied.ShapeError, "at least two positive integers"),
        ((6, 4.0), "relu", tied.ShapeError, "found:    sizes=(6, 4.0)"),
        ((6, True), "relu", tied.ShapeError, "found:    sizes=(6, True)"),
        ((6, 4), "rleu", tied.AddressError, "did you mean 'relu'"),
        ((6, 4), torch.relu, tied.KindError, "found:    activation=relu"),
        ((6, 4), nn.ReLU(), tied.KindError, "found:    activation=ReLU"),
    ],
)
def test_wrong_use(sizes, activation, error, words):
    with pytest.raises(error) as caught:
        TiedAutoencoder(sizes, activation)
    assert words in str(caught.value)
    assert str(caught.value).startswith("TiedAutoencoder(")
    assert str(caught.value).endswith("The model was not changed.")


@pytest.mark.parametrize("dtype", [torch.int32, torch.complex64])
def test_wrong_dtype(dtype):
    with pytest.raises(tied.DtypeError, match=f"found:    dtype={dtype}"):
        TiedAutoencoder((4, 2), dtype=dtype)
