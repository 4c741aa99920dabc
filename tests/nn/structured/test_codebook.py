"""The hash of `HashedLinear`, the codes of `CodebookLinear`, and the warning of `BroadcastLinear`."""

import warnings

import pytest
import torch
from structured_by_hand import splitmix
from torch import nn

import tied
from tied.nn import BroadcastLinear, CodebookLinear, HashedLinear, SymmetryWarning, ToeplitzLinear
from tied.nn.structured.codebook import cluster, nearest_value
from tied.nn.structured.splitmix import splitmix64

# -- the hash -------------------------------------------------------------------------------------------


def test_the_published_stream():
    """The first outputs from seed 1234567, as in the test vectors that many implementations share."""
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert splitmix64(1234567, 5).tolist() == published == [splitmix(1234567, place) for place in range(5)]


@pytest.mark.parametrize("seed", [0, 1, 2**63, 2**64 - 1])
def test_the_stream_is_pythons(seed):
    assert splitmix64(seed, 50).tolist() == [splitmix(seed, place) for place in range(50)]


def test_hashed_layers_are_the_same_for_ever():
    layer = HashedLinear(4, 3, 5, seed=7)
    with torch.no_grad():
        layer.theta.copy_(torch.arange(1.0, 6))
    assert layer.weight.tolist() == HASHED
    signs = BroadcastLinear(4, 3, per="scalar", private="sign", seed=7)
    assert signs.signs.tolist() == [[1 if entry > 0 else -1 for entry in row] for row in HASHED]


HASHED = [[-4.0, 3.0, 4.0, -2.0], [3.0, -3.0, 5.0, 2.0], [-3.0, -3.0, -2.0, 4.0]]


def test_hashes_are_even():
    layer = HashedLinear(200, 100, 50)
    uses = torch.bincount(layer.index.flatten(), minlength=100).double()
    assert uses.sum() == 20_000
    assert (uses - 200).square().sum() / 200 < 150  # chi square of 99 degrees of freedom: 150 is one in 1500
    assert (uses[:50] - uses[50:]).abs().max() < 100


def test_seeds_differ():
    one, other = HashedLinear(20, 20, 9), HashedLinear(20, 20, 9, seed=1)
    assert 0.02 < (one.index == other.index).double().mean() < 0.12


# -- codes ----------------------------------------------------------------------------------------------


def trained(width=20, height=15, bias=True) -> nn.Linear:
    return nn.Linear(width, height, bias=bias, dtype=torch.float64)


def distances(weight, layer) -> torch.Tensor:
    return (weight.detach().reshape(-1, 1) - layer.theta.detach()).abs()


@pytest.mark.parametrize("values", [1, 2, 16, 255, 256, 257, 1000])
def test_fit_satisfies_the_law_of_k_means(values):
    dense = trained()
    layer = CodebookLinear.from_linear(dense, values)
    assert layer.codes.dtype == (torch.uint8 if values <= 256 else torch.int32)
    codes, far = layer.codes.long().flatten(), distances(dense.weight, layer)
    own = far.gather(1, codes[:, None])[:, 0]
    torch.testing.assert_close(own, far.min(1).values, rtol=0, atol=1e-12)
    for code in codes.unique():
        mean = dense.weight.detach().flatten()[codes == code].mean()
        torch.testing.assert_close(layer.theta[code].detach(), mean, rtol=0, atol=1e-12)
    assert torch.equal(layer.bias, dense.bias)


def test_as_many_values_as_entries_give_the_layer_back():
    dense = trained(4, 3)
    layer = CodebookLinear.from_linear(dense, 4000)
    torch.testing.assert_close(layer.weight.detach(), dense.weight.detach(), rtol=0, atol=1e-12)


def test_equal_entries_and_a_single_one():
    dense = trained(4, 3)
    nn.init.constant_(dense.weight, 0.25)
    assert torch.equal(CodebookLinear.from_linear(dense, 8).weight, dense.weight)
    assert CodebookLinear.from_linear(trained(1, 1), 2).weight.shape == (1, 1)


def test_more_values_are_nearer():
    dense, errors = trained(), []
    for values in (2, 4, 8, 16, 32):
        errors.append((CodebookLinear.from_linear(dense, values).weight - dense.weight).norm().item())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.1 * errors[0]


def test_from_linear_copies_what_the_layer_is():
    dense = nn.Linear(6, 4, bias=False, dtype=torch.bfloat16).eval()
    before = dense.weight.detach().clone()
    layer = CodebookLinear.from_linear(dense, values=3)
    assert (layer.in_features, layer.out_features, layer.values, layer.bias) == (6, 4, 3, None)
    assert layer.theta.dtype == torch.bfloat16
    assert not layer.training
    assert torch.equal(dense.weight, before)
    toeplitz = ToeplitzLinear(6, 4)
    assert torch.equal(CodebookLinear.from_linear(toeplitz, 500).bias, toeplitz.bias)


def test_training_moves_the_values_and_keeps_the_codes():
    layer = CodebookLinear.from_linear(trained(), 4)
    codes, values = layer.codes.clone(), layer.theta.detach().clone()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(torch.randn(3, 20, dtype=torch.float64)).square().sum().backward()
    optimizer.step()
    assert torch.equal(layer.codes, codes)
    assert (layer.theta != values).all()
    assert layer.weight.unique().numel() == 4


def test_reassign():
    dense = trained()
    layer = CodebookLinear.from_linear(dense, 4)
    assert layer.reassign(dense.weight) == 0
    with torch.no_grad():  # as training may: values move, and not in their order
        layer.theta.copy_(torch.tensor([0.05, -0.2, 0.2, 0.0]))
    values, codes = layer.theta.detach().clone(), layer.codes.clone()
    before = (layer.weight - dense.weight).norm()
    changed = layer.reassign(dense.weight)
    assert changed == int((layer.codes != codes).sum()) > 0
    assert torch.equal(layer.theta, values)
    assert (layer.weight - dense.weight).norm() < before
    assert torch.equal(layer.codes.flatten().long(), distances(dense.weight, layer).argmin(1))
    assert layer.theta.requires_grad


def test_codes_are_stored():
    layer = CodebookLinear.from_linear(trained(), 16)
    assert {*layer.state_dict()} == {"theta", "bias", "codes"}
    other = CodebookLinear(20, 15, 16, dtype=torch.float64)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.weight, layer.weight)


def test_nearest_of_two_is_the_smaller():
    points = torch.tensor([-5.0, 0.5, 0.50001, 1.5, 9.0])
    assert nearest_value(points, torch.tensor([2.0, 0.0, 1.0])).tolist() == [1, 1, 2, 2, 0]


def test_a_point_between_two_values_goes_to_the_smaller():
    values, codes = cluster(torch.tensor([2.0, 0.0, 1.0], dtype=torch.float64), 2)
    assert (values.tolist(), codes.tolist()) == ([0.5, 2.0], [1, 0, 0])


def test_values_that_nobody_needs_stay_where_they_were():
    values, codes = cluster(torch.tensor([0.0, 0.1, 10.0], dtype=torch.float64), 3)
    torch.testing.assert_close(values, torch.tensor([0.05, 5, 10], dtype=torch.float64))
    assert codes.tolist() == [0, 0, 2]


# -- the warning ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("per", ["input", "scalar"])
def test_outputs_that_stay_equal_are_warned_of(per):
    with pytest.warns(SymmetryWarning) as caught:
        layer = BroadcastLinear(5, 3, per=per, bias=False)
    assert caught[0].filename == __file__
    optimizer = torch.optim.Adam(layer.parameters())
    for _ in range(5):
        layer(torch.randn(4, 5)).sin().square()[:, 0].sum().backward()
        optimizer.step()
    output = layer(torch.randn(4, 5))
    assert torch.equal(output, output[:, :1].expand(4, 3))


@pytest.mark.parametrize(
    "options",
    [
        {"private": "scale"},
        {"private": "sign"},
        {"per": "output"},
        {"per": "diagonal"},
        {"per": "scalar", "private": "sign"},
    ],
)
def test_nothing_is_warned_of_where_outputs_differ(options):
    layer = BroadcastLinear(4, 4, bias=False, **options)
    output = layer(torch.randn(1, 4))[0]
    assert output.unique().numel() > 1


def test_one_output_is_not_warned_of():
    assert BroadcastLinear(4, 1).weight.shape == (1, 4)


def test_signs_give_full_rank_and_scales_rank_one():
    assert torch.linalg.matrix_rank(BroadcastLinear(9, 6, private="sign").weight) == 6
    assert torch.linalg.matrix_rank(BroadcastLinear(9, 6, private="scale").weight) == 1


def test_the_text_of_the_warning():
    with pytest.warns(SymmetryWarning) as caught:
        BroadcastLinear(5, 3)
    assert str(caught[0].message) == WARNING
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tied.nn.SymmetryWarning)
        BroadcastLinear(5, 3)


WARNING = """\
BroadcastLinear(5, 3, per='input')
  All outputs are equal but for the bias, get equal gradients, and stay equal.
  found:    3 equal rows, nothing private
  expected: private='scale' or private='sign', or per='output'
  fix:      private='sign'; or, where it is meant, warnings.simplefilter('ignore', tied.nn.SymmetryWarning)
The layer was made all the same."""
