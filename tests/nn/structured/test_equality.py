"""Every structured layer is `F.linear` with its matrix, by every algorithm: values and all derivatives.

Training, copies, files, compilers and the rest are in `tests/nn/test_laws.py`, over these schemes too.
"""

import pytest
import torch
from structured_by_hand import leaves
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, jacfwd, jacrev, jvp

from tied.nn import (
    BlockCirculantLinear,
    BroadcastLinear,
    CirculantLinear,
    KroneckerLinear,
    SetLinear,
    ToeplitzLinear,
)

EXACT = {"rtol": 0, "atol": 1e-12}
FORWARD_MODE = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own use of it


def grow(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("batch", [(), (1,), (5,), (2, 3), (0,), (2, 0)])
def test_forward_and_gradient(case, batch):
    scheme, layer = case
    reference, x = leaves(layer), grow(*batch, layer.in_features).requires_grad_()
    other, weights = x.detach().clone().requires_grad_(), grow(*batch, layer.out_features)
    output, expected = layer(x), scheme.output(reference, other)
    torch.testing.assert_close(output, expected, **EXACT)
    (output * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(x.grad, other.grad, **EXACT)
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(parameter.grad, reference[name].grad, **EXACT)


def test_without_bias(scheme):
    layer = scheme.layer(bias=False)
    assert "bias" not in layer.state_dict()
    x = grow(3, layer.in_features)
    output = layer(x)
    torch.testing.assert_close(output, scheme.output(leaves(layer), x), **EXACT)
    assert torch.equal(output.relu_(), output)  # owns its memory: an activation may work in place


def as_function(layer):
    """The layer as a function of its input and all its parameters, with those as arguments."""
    names = [name for name, _ in layer.named_parameters()]
    values = [value.detach().clone().requires_grad_() for value in layer.parameters()]
    call = lambda x, *given: functional_call(layer, dict(zip(names, given, strict=True)), (x,))  # noqa: E731
    return call, (grow(2, layer.in_features).requires_grad_(), *values)


@FORWARD_MODE
def test_gradcheck(case):
    call, arguments = as_function(case[1])
    assert gradcheck(call, arguments, check_forward_ad=True)


def test_gradgradcheck(case):
    call, arguments = as_function(case[1])
    assert gradgradcheck(call, arguments)


@FORWARD_MODE
@pytest.mark.filterwarnings("ignore:There is a performance drop.*unfold_backward")
def test_forward_mode_and_its_composition_with_reverse_mode(case):
    call, arguments = as_function(case[1])
    plain = tuple(value.detach() for value in arguments)
    loss = lambda *given: call(*given).pow(3).sum()  # noqa: E731
    for place in range(len(plain)):
        torch.testing.assert_close(jacfwd(call, place)(*plain), jacrev(call, place)(*plain), **EXACT)
        torch.testing.assert_close(
            jacfwd(jacrev(loss, place), place)(*plain),
            jacrev(jacrev(loss, place), place)(*plain),
            rtol=1e-10,
            atol=1e-10,
        )
    tangents = tuple(torch.ones_like(value) for value in plain)
    _, along = jvp(call, plain, tangents)
    torch.testing.assert_close(
        along, sum(jacrev(call, p)(*plain).flatten(2).sum(-1) for p in range(len(plain))), **EXACT
    )


def test_weight_is_the_matrix_and_differentiable(scheme):
    layer = scheme.layer()
    reference = leaves(layer)
    by_hand = scheme.matrix(reference)
    assert layer.weight.shape == (layer.out_features, layer.in_features)
    torch.testing.assert_close(layer.weight.detach(), by_hand.detach(), check_stride=False, **EXACT)
    weights = grow(*by_hand.shape)
    (layer.weight * weights).sum().backward()
    (by_hand * weights).sum().backward()
    for name, parameter in layer.named_parameters():
        if name != "bias":
            torch.testing.assert_close(parameter.grad, reference[name].grad, **EXACT)


def test_frozen_parameters_and_inputs_get_no_gradient(case):
    _, layer = case
    layer.requires_grad_(False)
    x = grow(3, layer.in_features).requires_grad_()
    layer(x).sum().backward()
    assert x.grad is not None
    assert all(parameter.grad is None for parameter in layer.parameters())
    layer.requires_grad_(True)
    layer(x.detach()).sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


LARGER = {
    "toeplitz": lambda **o: ToeplitzLinear(300, 211, **o),
    "toeplitz-tall": lambda **o: ToeplitzLinear(17, 500, **o),
    "toeplitz-one-row": lambda **o: ToeplitzLinear(500, 1, **o),
    "toeplitz-one-column": lambda **o: ToeplitzLinear(1, 500, **o),
    "circulant-even": lambda **o: CirculantLinear(512, **o),
    "circulant-prime": lambda **o: CirculantLinear(509, **o),
    "circulant-one": lambda **o: CirculantLinear(1, **o),
    "block-circulant": lambda **o: BlockCirculantLinear(256, 192, 64, **o),
    "block-circulant-odd": lambda **o: BlockCirculantLinear(189, 252, 63, **o),
    "block-circulant-dense": lambda **o: BlockCirculantLinear(60, 70, 1, **o),
    "kronecker": lambda **o: KroneckerLinear(784, 256, **o),
    "kronecker-long": lambda **o: KroneckerLinear(256, 784, in_factors=(64, 4), out_factors=(2, 392), **o),
    "kronecker-one": lambda **o: KroneckerLinear(13, 17, in_factors=(1, 13), out_factors=(17, 1), **o),
    "set": lambda **o: SetLinear(1000, **o),
    "set-one": lambda **o: SetLinear(1, **o),
    "broadcast": lambda **o: BroadcastLinear(700, 300, private="scale", **o),
    "broadcast-output": lambda **o: BroadcastLinear(700, 300, per="output", **o),
}


@pytest.mark.parametrize("name", LARGER)
def test_algorithms_agree(name):
    layer = LARGER[name](dtype=torch.float64)
    x, found = grow(3, layer.in_features).requires_grad_(), []
    for algorithm in (layer.fast, "dense"):
        layer.algorithm = algorithm
        output = layer(x)
        found.append((output, *torch.autograd.grad(output.square().sum(), [x, *layer.parameters()])))
    for fast, dense in zip(*found, strict=True):
        torch.testing.assert_close(fast, dense, rtol=1e-10, atol=1e-10)
