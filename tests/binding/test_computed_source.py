"""Sources that their module computes: pruning, norms, parametrizations; each use sees one value."""

import copy
from collections.abc import Callable

import pytest
import torch
from stack import Stack
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import tied

OLD = pytest.mark.filterwarnings("ignore:.torch.nn.utils.weight_norm. is deprecated:FutureWarning")


class Halve(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 2


COMPUTE: dict[str, Callable[[nn.Module], object]] = {
    "prune": lambda m: prune.l1_unstructured(m, "weight", 0.5),
    "prune twice": lambda m: prune.random_unstructured(prune.l1_unstructured(m, "weight", 0.3), "weight", 0.3),
    "old weight norm": lambda m: torch.nn.utils.weight_norm(m),
    "old spectral norm": lambda m: torch.nn.utils.spectral_norm(m),
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "own": lambda m: parametrize.register_parametrization(m, "weight", Halve()),
    "two": lambda m: parametrizations.spectral_norm(parametrize.register_parametrization(m, "weight", Halve())),
}


def computed(kind: str) -> Stack:
    model = Stack().double()
    tied.tie(model, "decoder.weight", "encoder.weight.T")
    COMPUTE[kind](model.encoder)
    return model


@OLD
@pytest.mark.parametrize("kind", COMPUTE)
def test_both_uses_see_one_value_in_training(kind: str) -> None:
    """The decoder's weight is bit for bit what the encoder's forward just used."""
    model = computed(kind)
    model.encoder.bias = None
    for _ in range(3):
        used = model.encoder(torch.eye(6).double())  # the transposed weight itself
        torch.testing.assert_close(model.decoder.weight, used, rtol=1e-14, atol=1e-15)
        assert torch.equal(model.decoder.weight, model.decoder.weight)


@OLD
@pytest.mark.parametrize("kind", COMPUTE)
def test_a_decoder_without_the_encoders_forward_is_not_stale(kind: str) -> None:
    model = computed(kind)
    model.encoder(torch.zeros(1, 6).double())
    before = model.decoder.weight.detach().clone()
    for parameter in model.encoder.parameters():
        nn.init.normal_(parameter)
    after = model.decoder.weight.detach().clone()
    assert not torch.equal(before, after)
    model.eval()
    model.encoder.bias = None
    torch.testing.assert_close(model.encoder(torch.eye(6).double()), after, rtol=1e-12, atol=1e-13)


@OLD
@pytest.mark.parametrize("kind", [k for k in COMPUTE if k != "orthogonal"])
def test_gradients_of_both_uses_reach_the_originals(kind: str) -> None:
    """Against the same model with the encoder's weight read once and used twice, by hand."""
    model = computed(kind).eval()
    x = torch.randn(5, 6).double()
    model.decoder(torch.tanh(model.encoder(x))).square().sum().backward()
    grads = {n: p.grad.clone() for n, p in model.encoder.named_parameters()}
    model.zero_grad()
    model.encoder(x)  # refreshes what hooks compute
    weight = model.encoder.weight
    hidden = torch.tanh(nn.functional.linear(x, weight, model.encoder.bias))
    nn.functional.linear(hidden, weight.t(), model.decoder.bias).square().sum().backward()
    for name, parameter in model.encoder.named_parameters():
        torch.testing.assert_close(grads[name], parameter.grad, rtol=1e-12, atol=1e-13)


def test_reading_does_not_move_the_estimate_of_spectral_norm() -> None:
    model = computed("spectral norm")
    norm = model.encoder.parametrizations.weight[0]
    before = norm._u.clone()
    for _ in range(3):
        _ = model.decoder.weight
    assert torch.equal(norm._u, before)
    assert norm.training


@OLD
@pytest.mark.parametrize("kind", ["prune", "weight norm", "old weight norm", "own"])
def test_copies_of_a_model_with_a_computed_source(kind: str) -> None:
    if kind == "old weight norm":
        pytest.skip("torch cannot copy its old weight norm: a non-leaf attribute")
    model = computed(kind)
    model.encoder(torch.zeros(1, 6).double())
    if kind == "prune":
        pytest.skip("torch cannot copy a pruned module: a non-leaf attribute")
    twin = copy.deepcopy(model)
    for parameter in twin.encoder.parameters():
        nn.init.normal_(parameter)
    assert torch.equal(twin.decoder.weight, twin.encoder.weight.t())
    assert not torch.equal(twin.decoder.weight, model.decoder.weight)
    alone = copy.deepcopy(model.decoder)
    assert torch.equal(alone.weight, model.decoder.weight)
    assert isinstance(alone.weight, nn.Parameter)


@OLD
@pytest.mark.parametrize("kind", COMPUTE)
def test_removal_is_followed(kind: str) -> None:
    model = computed(kind).eval()
    value = model.decoder.weight.detach().clone()
    if kind.startswith("prune"):
        prune.remove(model.encoder, "weight")
    elif kind == "old weight norm":
        torch.nn.utils.remove_weight_norm(model.encoder)
    elif kind == "old spectral norm":
        torch.nn.utils.remove_spectral_norm(model.encoder)
    else:
        parametrize.remove_parametrizations(model.encoder, "weight")
    torch.testing.assert_close(model.decoder.weight.detach(), value, rtol=1e-12, atol=1e-13)
    assert isinstance(model.encoder.weight, nn.Parameter)


# -- writing --------------------------------------------------------------------------------------------

WRITES: dict[str, Callable[[nn.Module, Tensor], object]] = {
    "in place": lambda m, value: m.decoder.weight.copy_(value),
    "data": lambda m, value: setattr(m.decoder.weight, "data", value),
    "a part of it": lambda m, value: m.decoder.weight.__setitem__(slice(None), value),
}


def tied_to_computed(kind: str, source: str) -> Stack:
    model = Stack().double()
    tied.tie(model, "decoder.weight", source)
    COMPUTE[kind](model.encoder)
    return model


@OLD
@torch.no_grad()
@pytest.mark.parametrize("how", WRITES)
@pytest.mark.parametrize("source", ["encoder.weight.T", "2 * encoder.weight.T"])
@pytest.mark.parametrize("kind", COMPUTE)
def test_a_write_to_the_target_arrives_or_is_refused(kind: str, source: str, how: str) -> None:
    """Torch computes `encoder.weight` anew at each read, so that a write to the present value would be lost."""
    model = tied_to_computed(kind, source)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    value = torch.randn_like(model.decoder.weight)
    try:
        WRITES[how](model, value)
    except tied.InverseError:
        assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
        assert kind not in ("weight norm",)
    else:
        torch.testing.assert_close(model.decoder.weight, value, rtol=1e-12, atol=1e-12)
        assert kind in ("weight norm",)


@torch.no_grad()
def test_the_refusal_of_a_write_says_what_the_source_is() -> None:
    model = tied_to_computed("prune", "encoder.weight.T")
    with pytest.raises(tied.InverseError) as error:
        model.decoder.weight.zero_()
    assert str(error.value) == (
        "'weight' of Linear, which a tied weight reads, is computed and cannot be given this value.\n"
        "  found:    a value that its module computes (pruning, a norm, an adapter)\n"
        "  expected: a Parameter, or a parametrization with a right inverse\n"
        "  fix:      write to what it is computed from, or call tied.untie(model, target) first\n"
        "The model was not changed."
    )
    model = tied_to_computed("own", "encoder.weight.T")
    with pytest.raises(tied.InverseError, match="found:    a parametrization: "):
        model.decoder.weight.zero_()


class Refusing(Halve):
    def right_inverse(self, value: Tensor) -> Tensor:
        assert not value.isnan().any()
        raise AssertionError


@torch.no_grad()
def test_a_right_inverse_may_raise_anything() -> None:
    model = Stack().double()
    tied.tie(model, "decoder.weight", "encoder.weight.T")
    parametrize.register_parametrization(model.encoder, "weight", Halve())
    model.encoder.parametrizations.weight[0].__class__ = Refusing
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(tied.InverseError, match="found:    a parametrization: AssertionError"):
        model.decoder.weight.zero_()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
