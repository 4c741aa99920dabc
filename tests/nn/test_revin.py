"""`RevIN` gives back what it took. The faults of well-known implementations are tests here."""

import pytest
import torch
from torch import nn

import tied
from tied.nn import RevIN, Statistics

OPTIONS = [
    {},
    {"gain": "free"},
    {"gain": None},
    {"center": "last"},
    {"eps": 1e-5},
    {"gain": None, "center": "last", "eps": 1e-3},
]


def made(**options) -> RevIN:
    """A RevIN of three features, away from a gain of 1 and a bias of 0."""
    torch.manual_seed(0)
    revin = RevIN(3, dtype=torch.float64, **options)
    for parameter in revin.parameters():
        nn.init.uniform_(parameter, 0.5, 2)
    return revin


def series(*shape: int, seed: int = 0) -> torch.Tensor:
    return 3 + torch.randn(*shape, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("unit", [1e-8, 1, 1e8])
def test_round_trip(options, unit):
    revin, x = made(**options), unit * series(4, 9)
    normal, statistics = revin.normalize(x)
    torch.testing.assert_close(revin.denormalize(normal, statistics), x, rtol=1e-11, atol=0)


@pytest.mark.parametrize("options", [o for o in OPTIONS if "eps" not in o], ids=str)
@pytest.mark.parametrize("scale", [1e-9, 1e-4, 0.5, 1e6])
def test_forecasts_follow_the_unit(options, scale):
    revin, x = made(**options), series(4, 9)
    forecaster = nn.Linear(9, 5, dtype=torch.float64)

    def forecast(x):
        normal, statistics = revin.normalize(x)
        return revin.denormalize(torch.tanh(forecaster(normal.mT)).mT, statistics)

    shift = 7 * scale
    torch.testing.assert_close((forecast(scale * x + shift) - shift) / scale, forecast(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("center", ["mean", "last"])
def test_normalized_series_have_the_deviation_1(center):
    normal, statistics = RevIN(3, center=center).double().normalize(series(4, 50))
    torch.testing.assert_close(normal.std(-2, correction=0), torch.ones(4, 3, dtype=torch.float64))
    at = normal.mean(-2) if center == "mean" else normal[:, -1]
    torch.testing.assert_close(at, torch.zeros(4, 3, dtype=torch.float64), rtol=0, atol=1e-12)
    assert statistics.center.shape == statistics.scale.shape == (4, 1, 3)


def test_with_eps_it_is_the_papers():
    x = series(4, 9)
    _, statistics = RevIN(3, eps=0.25).normalize(x)
    torch.testing.assert_close(statistics.scale, (x.var(-2, keepdim=True, correction=0) + 0.25).sqrt())
    for value in (0.0, 1.0):
        normal, statistics = RevIN(3, eps=0.25).normalize(torch.full_like(x, value))
        assert (statistics.scale == 0.5).all()
        assert not normal.any()


def test_no_gradient_goes_through_the_statistics():
    x = series(2, 9).requires_grad_()
    normal, statistics = RevIN(3, gain=None).normalize(x)
    assert not statistics.center.requires_grad
    assert not statistics.scale.requires_grad
    normal.sum().backward()
    torch.testing.assert_close(x.grad, (1 / statistics.scale).expand_as(x))


# -- the faults of others ---------------------------------------------------------------------------


@pytest.mark.parametrize("unit", [0.0, 0.1, 1e-12, 1e6, 12345.678])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_constant_series_has_one_guard_for_both_directions(unit, dtype):
    """google-research/timesfm issue 522: one direction guarded a scale of zero, the other multiplied by it."""
    revin, x = RevIN(3), torch.full((2, 512, 3), unit, dtype=dtype)
    normal, statistics = revin.normalize(x)
    assert (statistics.scale == 1).all()
    assert normal.abs().max() <= 1e-5 * unit
    forecast = revin.denormalize(torch.full((2, 4, 3), 0.5, dtype=dtype), statistics)
    torch.testing.assert_close(forecast, torch.full_like(forecast, unit + 0.5), rtol=1e-2, atol=1e-6)


def test_a_masked_series_is_scaled_too():
    """WenjieDu/PyPOTS issue 453: where values were missing, the series was centered but not scaled."""
    revin, x = made(), series(4, 9)
    mask = torch.rand(4, 9, 3, generator=torch.Generator().manual_seed(3)) < 0.7
    mask[:, :2] = True
    normal, statistics = revin.normalize(torch.where(mask, x, torch.nan), mask=mask)
    for batch in range(4):
        for feature in range(3):
            seen = x[batch, mask[batch, :, feature], feature]
            torch.testing.assert_close(statistics.center[batch, 0, feature], seen.mean())
            torch.testing.assert_close(statistics.scale[batch, 0, feature], seen.std(correction=0))
    back = revin.denormalize(normal, statistics)
    torch.testing.assert_close(back[mask], x[mask], rtol=1e-12, atol=0)
    assert (normal[~mask] == 0).all()
    normal.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in revin.parameters())


def test_small_numbers_are_not_drowned():
    """unit8co/darts issue 2739: with 1e-5 added to the variance, a series of small numbers was not normalized."""
    x = series(4, 9)
    assert torch.allclose(RevIN(3).normalize(1e-4 * x)[0], RevIN(3).normalize(x)[0])
    drowned = RevIN(3, eps=1e-5).normalize(1e-4 * x)[0]
    assert drowned.std() < 0.1


@pytest.mark.parametrize("unit", [1e-30, 1e-21, 1e21, 1e30])
def test_units_whose_squares_do_not_fit(unit):
    x = series(4, 9)
    normal, statistics = RevIN(3).normalize((unit * x).float())
    torch.testing.assert_close(normal, RevIN(3).normalize(x)[0].float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(RevIN(3).denormalize(normal, statistics) / unit, x.float(), rtol=1e-5, atol=0)


def test_two_inputs_of_one_forecast_share_statistics():
    """ts-kim/RevIN issue 2: normalizing the decoder's input computed, and kept, statistics of its own."""
    revin, x, decoder_input = made(), series(4, 9), series(4, 5, seed=1)
    normal, statistics = revin.normalize(x)
    other, same = revin.normalize(decoder_input, statistics)
    assert same is statistics
    torch.testing.assert_close(revin.denormalize(normal, statistics), x)
    torch.testing.assert_close(revin.denormalize(other, statistics), decoder_input)


def test_calls_do_not_disturb_each_other():
    """Statistics kept on the module are those of the last call, which need not be one's own."""
    revin, one, other = made(), series(4, 9), 100 + series(2, 7, seed=1)
    (first, of_first), (second, of_second) = revin.normalize(one), revin.normalize(other)
    torch.testing.assert_close(revin.denormalize(first, of_first), one)
    torch.testing.assert_close(revin.denormalize(second, of_second), other)
    assert not list(revin.buffers())
    assert not [value for value in vars(revin).values() if isinstance(value, torch.Tensor)]


def test_gain_and_bias_are_undone_by_the_same_ones():
    """VEWOXIC/FITS issue 23: an affine map of its own in the way back, or none."""
    revin, x = made(), series(4, 9)
    normal, statistics = revin.normalize(x)
    with torch.no_grad():
        revin.log_weight.add_(1)
    assert (revin.denormalize(normal, statistics) - x).abs().max() > 0.1
    again, statistics = revin.normalize(x)
    torch.testing.assert_close(revin.denormalize(again, statistics), x)


def test_a_positive_gain_cannot_reach_zero():
    """A free gain that training carries through zero makes the way back infinite."""
    revin, x = RevIN(3), series(4, 9)
    optimizer = torch.optim.SGD(revin.parameters(), lr=10)
    for _ in range(50):
        optimizer.zero_grad()
        revin.normalize(x)[0].square().sum().backward()
        nn.utils.clip_grad_norm_(revin.parameters(), 0.1)
        optimizer.step()
    assert (revin.weight > 0).all()
    normal, statistics = revin.normalize(x)
    torch.testing.assert_close(revin.denormalize(normal, statistics), x, rtol=1e-9, atol=1e-9)


# -- state ------------------------------------------------------------------------------------------


def test_a_free_gain_is_loaded_into_a_positive_one():
    free = RevIN(3, gain="free")
    with torch.no_grad():
        free.weight.copy_(torch.tensor([0.5, 1, 2]))
    positive = RevIN(3)
    tied.load_state_dict(positive, free.state_dict())
    torch.testing.assert_close(positive.weight.detach(), free.weight.detach())
    with torch.no_grad():
        free.weight[0] = -1
    with pytest.raises(tied.InverseError):
        tied.load_state_dict(positive, free.state_dict())


def test_state_and_start():
    assert list(RevIN(3).state_dict()) == ["log_weight", "bias"]
    assert list(RevIN(3, gain="free").state_dict()) == ["weight", "bias"]
    assert list(RevIN(3, gain=None).state_dict()) == []
    for gain in ("positive", "free"):
        revin = RevIN(3, gain=gain)
        for parameter in revin.parameters():
            parameter.data.fill_(5)
        revin.reset_parameters()
        assert (revin.weight == 1).all()
        assert (revin.bias == 0).all()
    assert RevIN(3, dtype=torch.float64).weight.dtype == torch.float64
    assert str(tied.ties(RevIN(3))[0]) == "weight = log_weight.exp()"


def test_halves_are_computed_in_single_precision():
    x = (1000 + series(4, 512)).bfloat16()
    statistics = RevIN(3).normalize(x)[1]
    assert statistics.scale.dtype == torch.float32
    exact = RevIN(3).normalize(x.double())[1]
    torch.testing.assert_close(statistics.center, exact.center.float())
    torch.testing.assert_close(statistics.scale, exact.scale.float())
    assert RevIN(3, dtype=torch.bfloat16).normalize(x)[0].dtype == torch.bfloat16


def test_masks_that_hide_everything():
    revin, x = made(), series(2, 9)
    mask = torch.ones(2, 9, 3, dtype=torch.bool)
    mask[0, :, 1] = False
    normal, statistics = revin.normalize(x, mask=mask)
    assert statistics.scale[0, 0, 1] == 1
    assert statistics.center[0, 0, 1] == 0
    assert normal.isfinite().all()


def test_last_observed():
    x = series(1, 4)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 0, 1]]).bool()[None]
    center = RevIN(3, center="last").normalize(x, mask=mask)[1].center
    assert torch.equal(center[0, 0], torch.stack([x[0, 3, 0], x[0, 1, 1], x[0, 3, 2]]))


def test_any_leading_axes():
    revin, x = made(), series(2, 5, 9)
    normal, statistics = revin(x)
    assert statistics.center.shape == (2, 5, 1, 3)
    torch.testing.assert_close(normal[1, 2], revin(x[1, 2])[0])


def test_repr():
    assert repr(RevIN(3)).startswith("RevIN(3, gain='positive', center='mean', eps=0.0, weight=log_weight.exp()")


SHAPE = """\
RevIN
  The series do not have the shape that was announced.
  found:    shape (2, 3, 9)
  expected: (..., time, 3), with at least one moment
  fix:      x.transpose(-2, -1), where time comes last; the number of features is RevIN's first argument
The model was not changed."""

DTYPE = """\
RevIN
  Only real floating-point numbers can be normalized.
  found:    torch.complex64
  expected: float32, float64, float16 or bfloat16
  fix:      x.float(), or the real and imaginary parts as two series
The model was not changed."""

MASK = """\
RevIN
  The mask does not say for each value whether it was observed.
  found:    torch.float32 of shape (2, 9, 3)
  expected: torch.bool of shape (2, 9, 3)
  fix:      mask.bool().expand_as(x)
The model was not changed."""

STATISTICS = """\
RevIN.denormalize(y, statistics)
  The statistics are not what normalize returned.
  found:    Tensor
  expected: the second value that normalize returned
  fix:      normal, statistics = revin.normalize(x)
The model was not changed."""

SIZE = """\
RevIN(0)
  The number of features is not positive, or eps is negative.
  found:    features=0, eps=0.0
  expected: a whole number of at least 1, and a finite eps of at least 0
  fix:      RevIN(7)
The model was not changed."""

WORD = """\
RevIN(3)
  The gain or the center is none of the known ones.
  found:    gain='exp', center='mean'
  expected: gain 'positive', 'free' or None; center 'mean' or 'last'
  fix:      RevIN(3)
The model was not changed."""

x, statistics = torch.zeros(2, 9, 3), Statistics(torch.zeros(2, 1, 3), torch.ones(2, 1, 3))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: RevIN(3).normalize(x.mT), tied.ShapeError, SHAPE),
        (lambda: RevIN(3).normalize(x[:, :0]), tied.ShapeError, "found:    shape (2, 0, 3)"),
        (lambda: RevIN(3).normalize(x[0, 0]), tied.ShapeError, "found:    shape (3,)"),
        (lambda: RevIN(3).denormalize(x[..., :1], statistics), tied.ShapeError, "found:    shape (2, 9, 1)"),
        (lambda: RevIN(3).normalize(x.to(torch.complex64)), tied.DtypeError, DTYPE),
        (lambda: RevIN(3).normalize(x.long()), tied.DtypeError, "found:    torch.int64"),
        (lambda: RevIN(3).normalize(x, mask=torch.ones_like(x)), tied.ShapeError, MASK),
        (lambda: RevIN(3).normalize(x, mask=x[0].bool()), tied.ShapeError, "torch.bool of shape (9, 3)"),
        (lambda: RevIN(3).denormalize(x, x), tied.KindError, STATISTICS),
        (lambda: RevIN(0), tied.ShapeError, SIZE),
        (lambda: RevIN(3, dtype=torch.int32), tied.DtypeError, "found:    dtype=torch.int32"),
        (lambda: RevIN(2.0), tied.ShapeError, "features=2.0"),
        (lambda: RevIN(3, eps=-1), tied.ShapeError, "eps=-1"),
        (lambda: RevIN(3, gain="exp"), tied.KindError, WORD),
        (lambda: RevIN(3, center="first"), tied.KindError, "center='first'"),
    ],
)
def test_wrong_use(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message if message.endswith("changed.") else message in str(caught.value)
