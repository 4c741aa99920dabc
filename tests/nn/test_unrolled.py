"""`Unrolled` runs a cell over time."""

import pytest
import torch
from torch import nn

import tied
from tied.nn import Unrolled

CELLS = [(nn.RNNCell, nn.RNN), (nn.GRUCell, nn.GRU), (nn.LSTMCell, nn.LSTM)]


def pair(cell, network, **options):
    torch.manual_seed(0)
    plain = network(3, 4, **options).double()
    unrolled = Unrolled(cell(3, 4).double(), **options)
    unrolled.cell.load_state_dict({name.removesuffix("_l0"): value for name, value in plain.state_dict().items()})
    return unrolled, plain


@pytest.mark.parametrize(("cell", "network"), CELLS)
@pytest.mark.parametrize("batch_first", [False, True])
def test_equals_torchs_network(cell, network, batch_first):
    unrolled, plain = pair(cell, network, batch_first=batch_first)
    x = torch.randn(5, 6, 3, dtype=torch.float64)
    (outputs, state), (expected, last) = unrolled(x), plain(x)
    torch.testing.assert_close(outputs, expected, rtol=0, atol=1e-12)
    states, lasts = (each if isinstance(each, tuple) else (each,) for each in (state, last))
    for one, other in zip(states, lasts, strict=True):
        torch.testing.assert_close(one, other.squeeze(0), rtol=0, atol=1e-12)
    outputs.square().sum().backward()
    expected.square().sum().backward()
    for name, parameter in unrolled.cell.named_parameters():
        torch.testing.assert_close(parameter.grad, getattr(plain, f"{name}_l0").grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("cell", "network"), CELLS)
def test_two_halves_are_the_whole(cell, network):
    unrolled, _ = pair(cell, network)
    x = torch.randn(6, 2, 3, dtype=torch.float64)
    whole, last = unrolled(x)
    first, state = unrolled(x[:2])
    second, end = unrolled(x[2:], state)
    assert torch.equal(torch.cat([first, second]), whole)
    assert all(torch.equal(a, b) for a, b in zip(end, last, strict=True))


def test_without_a_batch():
    unrolled = Unrolled(nn.GRUCell(3, 4))
    x = torch.randn(6, 3)
    torch.testing.assert_close(unrolled(x)[0], unrolled(x.unsqueeze(1))[0].squeeze(1))


def test_any_cell():
    class Sum(nn.Module):
        def forward(self, x, state):
            return x if state is None else x + state

    outputs, state = Unrolled(Sum())(torch.arange(5.0))
    assert outputs.tolist() == [0, 1, 3, 6, 10]
    assert state == 10


def test_repr():
    assert repr(Unrolled(nn.Identity())).splitlines()[1].strip() == "batch_first=False"


KIND = """\
Unrolled(type)
  The cell is not a module.
  found:    type
  expected: an nn.Module that maps (input, state) to the next state
  fix:      Unrolled(nn.GRUCell(16, 32))
The model was not changed."""

TIMELESS = """\
Unrolled.forward(inputs)
  The inputs have no moment.
  found:    shape (4, 0, 3)
  expected: at least one entry along axis 1, which is time
  fix:      inputs.unsqueeze(1) for a single moment
The model was not changed."""


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Unrolled(nn.GRUCell), tied.KindError, KIND),
        (lambda: Unrolled(nn.GRUCell(3, 4), batch_first=True)(torch.zeros(4, 0, 3)), tied.ShapeError, TIMELESS),
        (lambda: Unrolled(nn.GRUCell(3, 4), batch_first=True)(torch.zeros(4)), tied.ShapeError, "shape (4,)"),
    ],
)
def test_wrong_use(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message if message.endswith("changed.") else message in str(caught.value)
