"""Heads, and layers, that share keys and values."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import tied
from tied.nn import GroupedAttention, GroupedLinear, KeyValue


def grouped(groups: int, **options) -> GroupedLinear:
    torch.manual_seed(0)
    return GroupedLinear(5, (4, 3), groups, dtype=torch.float64, **options)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_groups(groups, bias):
    layer, x = grouped(groups, bias=bias), torch.randn(6, 5, dtype=torch.float64)
    heads = layer(x).unflatten(-1, (4, 3))
    for head in range(4):
        assert torch.equal(heads[:, head], heads[:, head // (4 // groups) * (4 // groups)])
    assert len({tuple(heads[0, head].tolist()) for head in range(4)}) == groups
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias), rtol=0, atol=1e-12)
    assert layer.weight.shape == (12, 5)
    assert sum(p.numel() for p in layer.parameters()) == groups * 3 * (5 + bias)
    assert isinstance(layer, nn.Linear)


def test_the_built_weight_is_differentiable():
    layer = grouped(2)
    layer.weight.sum().backward()
    assert (layer.group_weight.grad == 2).all()


def test_starts_like_a_linear_layer():
    layer = GroupedLinear(400, (4, 30), 2)
    assert 0.9 / 20 < layer.group_weight.abs().max() <= 1 / 20
    assert 0.5 / 20 < layer.group_bias.abs().max() <= 1 / 20
    with torch.no_grad():
        layer.group_weight.zero_()
    layer.reset_parameters()
    assert layer.group_weight.any()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_mean_pooling_is_the_least_squares_projection(groups, bias):
    torch.manual_seed(1)
    linear = nn.Linear(5, 12, bias=bias, dtype=torch.float64)
    layer = GroupedLinear.from_linear(linear, 4, groups)
    for name in ("weight", "bias") if bias else ("weight",):
        target, size = getattr(linear, name).detach(), layer.group_weight.shape[0]
        tall = torch.zeros(12, size, dtype=torch.float64)  # the matrix that repeats groups for heads
        for row in range(12):
            tall[row, (row // 3) // (4 // groups) * 3 + row % 3] = 1
        best = torch.linalg.lstsq(tall, target.reshape(12, -1)).solution.reshape(size, *target.shape[1:])
        torch.testing.assert_close(getattr(layer, f"group_{name}").detach(), best, rtol=0, atol=1e-12)
    assert (layer.group_bias is None) == (not bias)


def test_all_groups_keep_the_projection():
    linear, x = nn.Linear(5, 12, dtype=torch.bfloat16), torch.randn(2, 5, dtype=torch.bfloat16)
    layer = GroupedLinear.from_linear(linear, 4, 4)
    assert layer.weight.dtype == torch.bfloat16
    assert torch.equal(layer.weight, linear.weight)
    assert torch.equal(layer(x), linear(x))


@pytest.mark.parametrize("address", ["weight", "bias", None])
def test_untied_it_computes_with_its_own(address):
    layer, x = grouped(2), torch.randn(2, 5, dtype=torch.float64)
    before = layer(x)
    tied.untie(layer, address)
    torch.testing.assert_close(layer(x), before)
    with torch.no_grad():
        (layer.bias if address == "bias" else layer.weight).add_(1)
    assert not torch.allclose(layer(x), before)


def test_repr():
    assert repr(grouped(2)).startswith("GroupedLinear(in_features=5, heads=4, width=3, groups=2, bias=True, weight=")
    assert "heads=4, groups=0, width=2" in repr(GroupedAttention(8, 4, 0))


# -- attention --------------------------------------------------------------------------------------


def test_as_many_groups_as_heads_is_torchs_attention():
    torch.manual_seed(0)
    layer = GroupedAttention(8, 4, 4, bias=True).double()
    plain = nn.MultiheadAttention(8, 4, batch_first=True).double()
    with torch.no_grad():
        plain.in_proj_weight.copy_(torch.cat([layer.query.weight, layer.key_value.weight]))
        plain.in_proj_bias.copy_(torch.cat([layer.query.bias, layer.key_value.bias]))
        plain.out_proj.load_state_dict(layer.output.state_dict())
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    unseen = torch.ones(5, 5).triu(1).bool()
    expected = plain(x, x, x, attn_mask=unseen, need_weights=False)[0]
    torch.testing.assert_close(layer(x, is_causal=True)[0], expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(layer(x, mask=~unseen)[0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("groups", [1, 2])
def test_groups_repeat_for_neighboring_heads(groups):
    torch.manual_seed(0)
    layer, full = GroupedAttention(8, 4, groups).double(), GroupedAttention(8, 4, 4).double()
    with torch.no_grad():
        key, value = layer.key_value.weight.chunk(2)
        wide = [w.unflatten(0, (groups, 2)).repeat_interleave(4 // groups, 0).flatten(0, 1) for w in (key, value)]
        full.key_value.weight.copy_(torch.cat(wide))
        full.query.load_state_dict(layer.query.state_dict())
        full.output.load_state_dict(layer.output.state_dict())
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    torch.testing.assert_close(layer(x)[0], full(x)[0], rtol=0, atol=1e-12)


def test_a_cache_holds_the_groups_only():
    layer, x = GroupedAttention(8, 4, 2), torch.randn(3, 5, 8)
    _, shared = layer(x)
    assert isinstance(shared, KeyValue)
    assert shared.key.shape == shared.value.shape == (3, 2, 5, 2)


def test_a_reader_has_no_keys_and_values():
    assert [name for name, _ in GroupedAttention(8, 4, 0).named_parameters()] == ["query.weight", "output.weight"]


def test_order_of_positions_does_not_matter_without_a_mask():
    layer, x = GroupedAttention(8, 4, 2).double(), torch.randn(3, 5, 8, dtype=torch.float64)
    order = torch.randperm(5)
    torch.testing.assert_close(layer(x[:, order])[0], layer(x)[0][:, order], rtol=0, atol=1e-12)


def test_without_a_batch():
    layer, x = GroupedAttention(8, 4, 2), torch.randn(5, 8)
    torch.testing.assert_close(layer(x)[0], layer(x[None])[0][0])


DIVIDES = """\
GroupedAttention(8, 4, 3)
  groups must divide heads.
  found:    groups=3, heads=4
  expected: a divisor of 4
  fix:      groups=1
The model was not changed."""

NONE = """\
GroupedAttention.forward(x)
  The layer needs the keys and values of one layer.
  found:    none: it has none of its own
  expected: shared keys and values if and only if groups=0
  fix:      layer(x, shared) with what another layer returned
The model was not changed."""

TWO = """\
GroupedAttention.forward(x, shared)
  The layer needs the keys and values of one layer.
  found:    its own, and those of another layer
  expected: shared keys and values if and only if groups=0
  fix:      layer(x)
The model was not changed."""

FIT = """\
GroupedAttention.forward(x, shared)
  The other layer's keys do not fit these heads.
  found:    keys of shape (3, 3, 5, 2) for queries of shape (3, 4, 5, 2)
  expected: the same batch, a width of 2, and a divisor of 4 heads
  fix:      share between layers of the same features and heads
The model was not changed."""

HEADS = """\
GroupedLinear(5, 12, 2)
  The heads are given by their number and their width.
  found:    heads=12
  expected: two whole numbers
  fix:      GroupedLinear(512, (8, 64), groups=2)
The model was not changed."""

SIZE = """\
GroupedLinear(5, (4, 0), 2)
  A size is not a positive whole number.
  found:    0
  expected: in_features, (heads, width) and groups of at least 1
  fix:      GroupedLinear(512, (8, 64), groups=2)
The model was not changed."""

LINEAR = """\
GroupedLinear.from_linear(Conv1d, 4, 2)
  The projection is not linear.
  found:    Conv1d
  expected: an nn.Linear whose output is divided into heads
  fix:      GroupedLinear.from_linear(attention.k_proj, heads, groups)
The model was not changed."""

x, pair = torch.zeros(3, 5, 8), lambda *shape: KeyValue(torch.zeros(shape), torch.zeros(shape))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: GroupedAttention(8, 4, 3), tied.ShapeError, DIVIDES),
        (lambda: GroupedAttention(8, 3, 1), tied.ShapeError, "heads must divide features"),
        (lambda: GroupedAttention(8, 4, -1), tied.ShapeError, "found:    groups=-1, heads=4"),
        (lambda: GroupedAttention(8, 4, None), tied.ShapeError, "found:    groups=None, heads=4"),
        (lambda: GroupedAttention(8, 4, 0)(x), tied.KindError, NONE),
        (lambda: GroupedAttention(8, 4, 2)(x, pair(3, 2, 5, 2)), tied.KindError, TWO),
        (lambda: GroupedAttention(8, 4, 0)(x, pair(3, 3, 5, 2)), tied.ShapeError, FIT),
        (lambda: GroupedAttention(8, 4, 0)(x, pair(3, 2, 5, 3)), tied.ShapeError, "a width of 2"),
        (lambda: GroupedAttention(8, 4, 0)(x, pair(1, 2, 5, 2)), tied.ShapeError, "the same batch"),
        (lambda: GroupedLinear(5, 12, 2), tied.ShapeError, HEADS),
        (lambda: GroupedLinear(5, (4, 0), 2), tied.ShapeError, SIZE),
        (lambda: GroupedLinear(5, (4, 3), 3), tied.ShapeError, "groups must divide heads"),
        (lambda: GroupedLinear.from_linear(nn.Conv1d(1, 1, 1), 4, 2), tied.KindError, LINEAR),
        (lambda: GroupedLinear.from_linear(nn.Linear(5, 12), 5, 1), tied.ShapeError, "heads must divide the proj"),
    ],
)
def test_wrong_use(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message if message.endswith("changed.") else message in str(caught.value)


@pytest.mark.parametrize("layer", [GroupedLinear(8, (4, 2), 2, bias=False), GroupedAttention(8, 4, 2)])
def test_an_input_on_another_device(layer):
    with pytest.raises(tied.DeviceError):
        copy.deepcopy(layer).to("meta")(torch.zeros(2, 3, 8))
