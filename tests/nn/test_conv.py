"""`TiedConvTranspose` is the adjoint of its convolution, whatever the convolution's options."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import tied
from tied.nn import TiedConvTranspose1d, TiedConvTranspose2d, TiedConvTranspose3d

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
BACK = {1: TiedConvTranspose1d, 2: TiedConvTranspose2d, 3: TiedConvTranspose3d}

quiet = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


def pair(dims: int, size: int | None = None, *, kernel: int = 3, channels: tuple[int, int] = (2, 4), **options):
    conv = CONV[dims](*channels, kernel, bias=False, dtype=torch.float64, **options)
    return conv, BACK[dims](conv, bias=False, output_size=size)


def assert_adjoint(conv, back, shape, **call) -> None:
    """Compare with what autograd, which is plain torch, says the adjoint is; and with the law."""
    x = torch.randn(3, conv.in_channels, *shape, dtype=torch.float64, requires_grad=True)
    y = conv(x)
    other = torch.randn_like(y)
    found = back(other, **call)
    (expected,) = torch.autograd.grad(y, x, other)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close((y * other).sum(), (x * found).sum(), rtol=1e-12, atol=1e-12)


@quiet
@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect", "replicate"])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_adjoint(dims, mode):
    strides, dilations, kernels = (1, 2, 3), (1, 2), (1, 2, 4)
    for stride, dilation, kernel, padding in itertools.product(strides, dilations, kernels, (0, 1, 2, "same", "valid")):
        size = 7 if dims == 3 else 8
        if padding == "same" and stride > 1:
            continue
        options = {"stride": stride, "dilation": dilation, "padding": padding, "padding_mode": mode}
        conv, back = pair(dims, size, kernel=kernel, groups=2 if kernel == 2 else 1, **options)
        assert_adjoint(conv, back, (size,) * dims)


@pytest.mark.parametrize("size", range(5, 12))
def test_every_size_is_solved_by_the_constructor_and_by_the_call(size):
    conv = nn.Conv1d(2, 4, 3, stride=4, dtype=torch.float64)
    x = torch.randn(1, 2, size, dtype=torch.float64)
    assert TiedConvTranspose1d(conv, output_size=size)(conv(x)).shape[-1] == size
    for given in (size, (size,), [size], x.shape, x.shape[1:]):
        assert TiedConvTranspose1d(conv, output_size=given).output_padding == ((size - 3) % 4,)
    for given in ((size,), [size], x.shape, x.shape[1:]):
        assert TiedConvTranspose1d(conv)(conv(x), output_size=given).shape[-1] == size


def test_sizes_differ_by_axis():
    conv = nn.Conv2d(1, 2, (3, 2), stride=(2, 3), padding=(1, 0), dtype=torch.float64)
    back = TiedConvTranspose2d(conv, output_size=(8, 10), bias=False)
    assert back.output_padding == (1, 2)
    conv.bias = None
    assert_adjoint(conv, back, (8, 10))
    assert_adjoint(conv, back, (7, 9), output_size=(7, 9))
    assert_adjoint(conv, back, (10, 13))  # other sizes with the same remainders


def test_without_a_size_the_smallest():
    conv = nn.Conv2d(1, 2, 3, stride=2)
    assert TiedConvTranspose2d(conv)(conv(torch.zeros(1, 1, 8, 8))).shape[-2:] == (7, 7)


@quiet
@pytest.mark.parametrize("options", [{}, {"padding": "same"}, {"padding": 1, "padding_mode": "circular"}])
def test_bias_is_added_and_a_batch_is_not_needed(options):
    conv = nn.Conv2d(2, 3, 2, **options)
    with_bias = TiedConvTranspose2d(conv)
    without = TiedConvTranspose2d(conv, bias=False)
    y = torch.randn(4, 3, 5, 5)
    torch.testing.assert_close(
        with_bias(y) - without(y), with_bias.bias.view(1, 2, 1, 1).expand(4, 2, *without(y).shape[2:])
    )
    torch.testing.assert_close(with_bias(y[0]), with_bias(y)[0])


def test_the_weight_is_the_convolutions_own():
    conv = nn.Conv2d(3, 8, 3)
    back = TiedConvTranspose2d(conv)
    assert back.weight is conv.weight
    assert isinstance(back, nn.ConvTranspose2d)
    assert sorted(name for name, _ in back.named_parameters()) == ["bias", "weight"], "as in plain torch"
    assert len(list(nn.ModuleList([conv, back]).parameters())) == 3
    assert not list(back.children())
    conv.weight = nn.Parameter(torch.zeros(8, 3, 3, 3))
    assert not back.weight.any()


def test_a_computed_weight_is_followed():
    conv = parametrizations.weight_norm(nn.Conv1d(2, 3, 3))
    back = TiedConvTranspose1d(conv)
    with torch.no_grad():
        conv.parametrizations.weight.original0.mul_(2)
    assert torch.equal(back.weight, conv.weight)


def test_a_weight_that_is_tied_itself_is_followed():
    model = nn.ModuleDict({"a": nn.Conv1d(2, 3, 3), "b": nn.Conv1d(2, 3, 3)})
    tied.tie(model, "b.weight", "2 * a.weight")
    back = TiedConvTranspose1d(model["b"])
    assert torch.equal(back.weight, 2 * model["a"].weight)


def test_bias_device_dtype_and_bound():
    conv = nn.Conv2d(16, 32, 4, groups=2)
    bias = TiedConvTranspose2d(conv).bias
    assert bias.shape == (16,)
    bound = (16 * 16) ** -0.5  # 32 / 2 channels, 16 entries of the kernel
    assert 0.8 * bound < bias.abs().max() <= bound
    assert TiedConvTranspose2d(conv.bfloat16()).bias.dtype == torch.bfloat16
    assert TiedConvTranspose2d(conv, dtype=torch.float64).bias.dtype == torch.float64
    assert TiedConvTranspose2d(nn.Conv2d(1, 1, 1, device="meta")).bias.device.type == "meta"


def test_reset_leaves_the_convolution_alone():
    conv = nn.Conv1d(2, 3, 3)
    back = TiedConvTranspose1d(conv)
    weight, bias = conv.weight.detach().clone(), back.bias.detach().clone()
    back.reset_parameters()
    assert torch.equal(conv.weight, weight)
    assert not torch.equal(back.bias, bias)


KIND = """\
TiedConvTranspose2d(Conv1d)
  The source is not an nn.Conv2d.
  found:    Conv1d
  expected: the nn.Conv2d whose weight is to be used
  fix:      TiedConvTranspose2d(model.conv); another number of dimensions has a class of its own
The model was not changed."""

LAZY = """\
TiedConvTranspose2d(LazyConv2d)
  The weight has no shape yet.
  found:    the parameter of a lazy module
  expected: an initialized one
  fix:      run one forward through its module first
The model was not changed."""

COMPLEX = """\
TiedConvTranspose2d(Conv2d)
  The adjoint of a complex convolution needs the conjugate weight, not the same one.
  found:    torch.complex64
  expected: a real dtype
  fix:      share real and imaginary parts as two convolutions
The model was not changed."""

TOO_SMALL = """\
TiedConvTranspose2d(...)
  The convolution takes no input of that size here.
  found:    output_size=(4, 2)
  expected: at least (3, 3)
  fix:      the size of what the convolution was applied to: output_size=x.shape
The model was not changed."""

AXES = """\
TiedConvTranspose2d(...)
  The output size does not have the convolution's number of axes.
  found:    output_size=(4,)
  expected: 2 sizes, or a shape that ends with them
  fix:      output_size=x.shape[-2:]
The model was not changed."""

OUT_OF_REACH = """\
TiedConvTranspose2d(...)
  The convolution takes no input of that size here.
  found:    output_size=(10, 9)
  expected: from (7, 7) to (9, 9), for an input of (2, 2)
  fix:      the size of what the convolution was applied to: output_size=x.shape
The model was not changed."""

NARROW = """\
TiedConvTranspose1d(...)
  The output would be too small for the convolution's padding.
  found:    an axis of size 3, padded by 3 in mode 'reflect'
  expected: at least 4
  fix:      a larger input, or padding_mode='zeros'
The model was not changed."""


OWN_WAY = """\
TiedConvTranspose1d(Causal)
  The convolution computes in a way of its own, whose adjoint is not known.
  found:    Causal.forward, which is not that of nn.Conv1d
  expected: an nn.Conv1d that computes as torch does
  fix:      share the weight alone: tied.tie(model, 'back.weight', 'conv.weight')
The model was not changed."""


class Causal(nn.Conv1d):
    """A convolution that sees the past only, as people write it."""

    def forward(self, input):
        return super().forward(nn.functional.pad(input, (2, 0)))


def strided() -> nn.Conv2d:
    return nn.Conv2d(2, 3, 3, stride=3).requires_grad_(False)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: TiedConvTranspose2d(nn.Conv1d(2, 3, 3)), tied.KindError, KIND),
        (lambda: TiedConvTranspose1d(Causal(2, 3, 3)), tied.KindError, OWN_WAY),
        (lambda: TiedConvTranspose2d(nn.LazyConv2d(3, 3)), tied.KindError, LAZY),
        (lambda: TiedConvTranspose2d(nn.Conv2d(2, 3, 3, dtype=torch.complex64)), tied.DtypeError, COMPLEX),
        (lambda: TiedConvTranspose2d(strided(), output_size=(4, 2)), tied.ShapeError, TOO_SMALL),
        (lambda: TiedConvTranspose2d(strided(), output_size=(4,)), tied.ShapeError, AXES),
        (
            lambda: TiedConvTranspose2d(strided(), output_size=(4,) * 5),
            tied.ShapeError,
            AXES.replace("(4,)", "(4, 4, 4, 4, 4)"),
        ),
        (
            lambda: TiedConvTranspose2d(nn.Conv2d(2, 3, 4, stride=3))(torch.zeros(1, 3, 2, 2), output_size=(10, 9)),
            tied.ShapeError,
            OUT_OF_REACH,
        ),
        (
            lambda: TiedConvTranspose1d(nn.Conv1d(1, 1, 7, padding=3, padding_mode="reflect"))(torch.zeros(1, 1, 3)),
            tied.ShapeError,
            NARROW,
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_wrong_use(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message


@pytest.mark.parametrize("options", [{}, {"padding": 1, "padding_mode": "circular"}])
def test_an_input_on_another_device(options):
    back = TiedConvTranspose1d(nn.Conv1d(2, 3, 3, device="meta", **options))
    with pytest.raises(tied.DeviceError):
        back(torch.zeros(1, 3, 4))


def test_a_copy_of_the_layer_alone_has_a_weight_of_its_own():
    back = TiedConvTranspose1d(nn.Conv1d(2, 3, 3, stride=2), output_size=8)
    alone, y = copy.deepcopy(back), torch.randn(1, 3, 3)
    assert {name for name, _ in alone.named_parameters()} == {"weight", "bias"}
    assert torch.equal(alone(y), back(y))
