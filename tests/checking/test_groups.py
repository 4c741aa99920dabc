"""Which names share memory, and what each is of the first; the cases of other finders, told anew."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import Parameter

import tied
from tied.checking.collapse import collapse
from tied.checking.groups import count, groups, size_without_sharing
from tied.checking.inventory import Inventory
from tied.memory.view_relation import relation
from tied.reporting.facts import Group


def linear(wide: int = 3, narrow: int = 3, bias: bool = True) -> nn.Linear:
    return nn.Linear(wide, narrow, bias=bias)


def stack(*names: str) -> nn.ModuleDict:
    return nn.ModuleDict({name: linear() for name in names})


def names_of(model: nn.Module) -> list[tuple[str, ...]]:
    return [group.names for group in groups(model)]


# -- relations ----------------------------------------------------------------------------------------

BASE = torch.arange(6 * 4 * 5.0).view(6, 4, 5)
VIEWS = {
    "whole": lambda b: b,
    "rows": lambda b: b[1:3],
    "last-rows": lambda b: b[4:],
    "steps": lambda b: b[1::2],
    "columns": lambda b: b[:, 1:3],
    "both": lambda b: b[2:5, :, ::3],
    "one": lambda b: b[2],
    "middle-one": lambda b: b[:, 3],
    "element": lambda b: b[5, 3, 4],
    "swapped": lambda b: b.transpose(0, 1),
    "turned": lambda b: b.permute(2, 0, 1),
    "slice-of-turned": lambda b: b.permute(2, 0, 1)[1:4, 2],
    "matrix-transposed": lambda b: b[3].t(),
    "flat": lambda b: b.flatten(),
    "flat-part": lambda b: b.flatten()[7:19],
    "reshaped": lambda b: b.reshape(24, 5),
    "reshaped-part": lambda b: b.flatten()[3:43].view(8, 5),
    "added-dimension": lambda b: b[:, 2].unsqueeze(1),
    "expanded": lambda b: b[1, 2].expand(7, 5),
    "expanded-behind": lambda b: b[1, 2].unsqueeze(1).expand(5, 3),
    "one-row-and-column": lambda b: b[2:3, 1:2, :4],
    "offset": lambda b: b[5:, 3:, 4:],
}


@pytest.mark.parametrize("name", VIEWS)
def test_a_relation_makes_the_very_view(name):
    view = VIEWS[name](BASE)
    text = relation(BASE, view)
    made = tied.parse("x" if text == "identity" else f"x{text}").value({("x",): BASE})
    assert (made.data_ptr(), made.shape) == (view.data_ptr(), view.shape), text
    assert all(m == v for m, v, n in zip(made.stride(), view.stride(), view.shape, strict=True) if n > 1), text


@pytest.mark.parametrize(
    ("base", "view", "text"),
    [
        (torch.zeros(6, 4), lambda w: w.t(), ".T"),
        (torch.zeros(6, 4), lambda w: w[:2], "[:2]"),
        (torch.zeros(6, 4), lambda w: w[:, 2:], "[:, 2:]"),
        (torch.zeros(6, 4), lambda w: w[4], "[4]"),
        (torch.zeros(6, 4), lambda w: w[1:3].t(), "[1:3].T"),
        (torch.zeros(6), lambda w: w[2:5], "[2:5]"),
        (torch.zeros(6), lambda w: w.view(2, 3), ".reshape(2, 3)"),
        (torch.zeros(4), lambda w: w.expand(3, 4), ".unsqueeze(0).expand(3, 4)"),
        (torch.zeros(4), lambda w: w.unsqueeze(0), ".unsqueeze(0)"),
        (torch.zeros(6, 4), lambda w: w.as_strided((1, 4), (999, 1), 4), "[1:2]"),
    ],
)
def test_relations_are_short(base, view, text):
    assert relation(base, view(base)) == text


def test_what_no_transform_says_is_an_overlap():
    flat = torch.zeros(24)
    assert relation(flat[:16], flat[8:]) == "overlap"
    assert relation(flat.view(4, 6), flat.as_strided((3, 3), (5, 1), 1)) == "overlap"
    assert relation(flat, flat.view(torch.int32)) == "overlap"
    assert relation(flat[::2], flat[1:2]) == "overlap"
    assert relation(flat.view(4, 6), flat.as_strided((3, 3), (7, 1))) == "overlap"
    complex_numbers = torch.zeros(4, dtype=torch.complex64)
    assert relation(complex_numbers, complex_numbers.conj()) == "overlap"
    assert relation(complex_numbers, complex_numbers.conj().imag) == "overlap"
    assert relation(complex_numbers.imag, complex_numbers.conj().imag) == "overlap"
    assert relation(flat[:6].expand(4, 6), flat[:6]) == "overlap"
    misaligned = bytearray(64)
    whole = torch.frombuffer(misaligned, dtype=torch.float32, count=8)
    assert relation(whole, torch.frombuffer(misaligned, dtype=torch.float32, count=4, offset=2)) == "overlap"


# -- the cases of accelerate, Lightning, safetensors and Equinox ---------------------------------------


def test_nothing_is_shared():
    assert names_of(stack("a", "b")) == []


def test_a_pair_a_triple_and_two_groups():
    model = stack("a", "b", "c", "d")
    model.b.weight = model.a.weight
    assert names_of(model) == [("a.weight", "b.weight")]
    model.c.weight = model.a.weight
    model.d.bias = model.b.bias
    assert names_of(model) == [("a.weight", "b.weight", "c.weight"), ("b.bias", "d.bias")]


def test_across_blocks():
    model = nn.Sequential(nn.Sequential(linear(), linear()), nn.Sequential(linear(), linear()))
    model[1][0].weight = model[0][1].weight
    assert names_of(model) == [("0.1.weight", "1.0.weight")]


def test_one_module_at_two_places():
    layer = linear()
    found = groups(nn.Sequential(layer, linear(), layer))
    assert [group.names for group in found] == [("0.weight", "2.weight"), ("0.bias", "2.bias")]
    assert all(group.state == "tied" for group in found)


def test_names_that_begin_alike_are_different():
    model = nn.ModuleDict({"compute": linear(), "compute_weight": linear()})
    model["compute_weight"].weight = model["compute"].weight
    assert names_of(model) == [("compute.weight", "compute_weight.weight")]


def test_the_same_parameter_under_two_names_of_one_module():
    layer = linear()
    layer.also = layer.weight
    assert names_of(layer) == [("weight", "also")]


def test_equal_values_do_not_share():
    model = stack("a", "b")
    model.b.load_state_dict(model.a.state_dict())
    assert names_of(model) == []
    assert names_of(nn.ModuleList([model.a, copy.deepcopy(model.a)])) == []


def test_meta_shares_where_it_is_one_tensor():
    with torch.device("meta"):
        model = stack("a", "b")
    assert names_of(model) == []
    model.b.weight = model.a.weight
    model.b.bias = Parameter(model.a.bias[:])
    first, second = groups(model)
    assert (first.state, second.state) == ("tied", "half-tied")


def test_views_overlaps_and_non_contiguous_tensors():
    buffer = torch.zeros(10, 10)
    model = nn.ParameterDict({"left": Parameter(buffer[:, :5]), "right": Parameter(buffer[:, 5:])})
    assert names_of(model) == []
    model["middle"] = Parameter(buffer[:, 4:6])
    (group,) = groups(model)
    assert group.names == ("left", "right", "middle")
    assert group.transforms == ("identity", "overlap", "overlap")
    assert count(Inventory.of(model)) == (100, 400)


def test_three_names_two_of_which_are_one_object():
    weight = torch.zeros(4, 6)
    model = nn.ParameterDict({"a": Parameter(weight)})
    model["b"] = model["a"]
    model["c"] = Parameter(weight.t())
    (group,) = groups(model)
    assert (group.state, group.names) == ("half-tied", ("a", "b", "c"))
    assert group.transforms == ("identity", "identity", ".T")


def test_the_largest_comes_first():
    weight = torch.zeros(8, 4)
    model = nn.ParameterDict({"cut": Parameter(weight[2:6]), "whole": Parameter(weight)})
    (group,) = groups(model)
    assert (group.names, group.transforms) == (("whole", "cut"), ("identity", "[2:6]"))
    assert (group.shape, group.dtype, group.bytes) == ((8, 4), "float32", 128)


def test_a_recurrent_layer_shares_nothing():
    lstm = nn.LSTM(3, 4, 2)
    assert names_of(lstm) == []
    flat = torch.zeros(sum(p.numel() for p in lstm.parameters()))
    begin = 0
    for parameter in lstm.parameters():
        parameter.data = flat[begin : begin + parameter.numel()].view(parameter.shape)
        begin += parameter.numel()
    assert names_of(lstm) == []


# -- other kinds of slots -----------------------------------------------------------------------------


def test_buffers_count_and_lazy_modules_do_not_stop():
    model = nn.ModuleDict({"a": nn.BatchNorm1d(3), "b": nn.BatchNorm1d(3), "lazy": nn.LazyLinear(3)})
    model.b.running_mean = model.a.running_mean
    assert names_of(model) == [("a.running_mean", "b.running_mean")]
    model["also"] = model.lazy
    assert ("lazy.weight", "also.weight") in names_of(model)


def test_a_module_inside_itself_is_walked_once():
    model = stack("a")
    model.a.inner = nn.ModuleDict({"back": model})
    assert names_of(model) == []
    assert list(Inventory.of(model).places) == ["a.weight", "a.bias"]


def test_names_come_in_the_order_of_named_parameters():
    model = nn.Sequential(linear(), nn.Sequential(linear(), nn.BatchNorm1d(3)), linear())
    inventory = Inventory.of(model)
    own = [name for name, place in inventory.places.items() if place < inventory.parameters]
    assert own == [name for name, _ in model.named_parameters()]
    assert inventory.parameter_names == own


def test_shared_modules_are_named_at_each_place():
    layer = linear()
    model = nn.ModuleDict({"a": nn.Sequential(layer), "b": nn.Sequential(layer, layer)})
    every = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    assert sorted(Inventory.of(model).places) == sorted(every)
    assert sum(name.startswith("b.") for name in Inventory.of(model).parameter_names) == 4


# -- ties that `tied` declared ------------------------------------------------------------------------


def test_declared_ties_join_the_group_of_their_source():
    model = nn.ModuleDict({"encoder": linear(4, 6), "decoder": linear(6, 4), "other": linear(4, 6), "c": linear(4, 6)})
    tied.tie(model, {"decoder.weight": "2 * encoder.weight.T", "other.weight": "encoder.weight"})
    model.c.weight = model.encoder.weight
    (group,) = groups(model)
    assert group.state == "tied"
    assert group.names == ("encoder.weight", "other.weight", "c.weight", "decoder.weight")
    assert group.transforms == ("identity", "identity", "identity", "2 * encoder.weight.T")


def test_a_declared_target_of_a_view_is_told_from_the_first_name():
    model = nn.ModuleDict({"a": linear(4, 6, bias=False), "b": linear(4, 6, bias=False), "c": linear(6, 4, bias=False)})
    model.b.weight = Parameter(model.a.weight[:3])
    tied.tie(model, "c.weight", "a.weight.T")
    (group,) = groups(model)
    assert group.transforms == ("identity", "[:3]", ".T")
    model = nn.ModuleDict({"a": linear(4, 6, bias=False), "b": linear(6, 4, bias=False), "c": linear(4, 6, bias=False)})
    model.b.weight = Parameter(model.a.weight.t())
    tied.tie(model, "c.weight", "b.weight.T")
    assert groups(model)[0].transforms == ("identity", ".T", ".T.T")


def test_a_target_that_is_a_view_as_it_is():
    model = nn.ModuleDict({"a": linear(4, 6, bias=False), "b": linear(4, 3, bias=False), "c": linear(4, 3, bias=False)})
    model.b.weight = Parameter(model.a.weight[:3])
    tied.tie(model, "c.weight", "b.weight")
    assert groups(model)[0].transforms == ("identity", "[:3]", "[:3]")


def test_targets_of_a_computed_source_are_one_group():
    model = nn.ModuleDict({"a": linear(4, 6), "b": linear(6, 4), "c": linear(4, 6)})
    torch.nn.utils.parametrizations.weight_norm(model.a)
    tied.tie(model, {"b.weight": "a.weight.T", "c.weight": "a.weight"})
    (group,) = groups(model)
    assert (group.names, group.transforms) == (("a.weight", "b.weight", "c.weight"), ("identity", ".T", "identity"))
    assert size_without_sharing(Inventory.of(model)) == sum(t.nbytes for t in model.state_dict().values())
    model = nn.ModuleDict({"a": linear(4, 6), "b": linear(4, 2), "c": linear(4, 8)})
    torch.nn.utils.parametrizations.weight_norm(model.a)
    tied.tie(model, "c.weight", "cat([a.weight, b.weight], 0)")
    assert size_without_sharing(Inventory.of(model)) == sum(t.nbytes for t in model.state_dict().values())


def test_a_target_that_was_overwritten_is_in_no_group():
    model = nn.ModuleDict({"a": nn.BatchNorm1d(3), "b": nn.BatchNorm1d(3)})
    tied.tie(model, "b.running_mean", "a.running_mean", buffers=True)
    assert names_of(model) == [("a.running_mean", "b.running_mean")]
    model.b._buffers["running_mean"] = torch.ones(3)
    assert names_of(model) == []


def test_ties_of_several_sources_are_groups_of_their_own():
    model = nn.ModuleDict({"a": linear(4, 2), "b": linear(4, 4), "c": linear(4, 6)})
    tied.tie(model, "c.weight", "cat([a.weight, b.weight], 0)")
    (group,) = groups(model)
    assert group.names == ("a.weight", "b.weight", "c.weight")
    assert group.transforms == ("identity", "source", "cat([a.weight, b.weight], 0)")
    assert size_without_sharing(Inventory.of(model)) == 4 * sum(4 * n + n for n in (2, 4, 6))


def test_ties_are_seen_through_torch_compile():
    model = nn.ModuleDict({"a": linear(4, 6), "b": linear(6, 4)})
    tied.tie(model, "b.weight", "a.weight.T")
    compiled = torch.compile(nn.Sequential(model.a), backend="eager")
    assert groups(compiled) == ()
    (group,) = groups(torch.compile(model, backend="eager"))
    assert group.names == ("_orig_mod.a.weight", "_orig_mod.b.weight")


# -- counting -----------------------------------------------------------------------------------------


def numbers(*tensors: Tensor) -> int:
    return counted(*tensors)[0]


def counted(*tensors: Tensor) -> tuple[int, int]:
    return count(Inventory(nn.Module(), {}, [str(i) for i in range(len(tensors))], list(tensors), len(tensors)))


def test_memory_is_counted_once():
    weight = torch.zeros(6, 4)
    assert numbers(weight, torch.zeros(3)) == 27
    assert numbers(weight, weight.t()) == 24
    assert numbers(weight, weight[1:3], weight[:, 2]) == 24
    assert numbers(weight[:4], weight[2:]) == 24
    assert numbers(weight[:, :3], weight[:, 2:]) == 24
    assert numbers(weight[::2], weight[:, ::2]) == 3 * 4 + 3 * 2
    assert numbers(nn.UninitializedParameter(), torch.zeros(0)) == 0
    assert counted(weight.double(), torch.zeros(3, dtype=torch.int8)) == (27, 24 * 8 + 3)


def test_a_parameter_over_a_part_of_a_buffer():
    model, table = nn.Module(), torch.zeros(30)
    model.register_buffer("table", table)
    model.weight = Parameter(table[:20])
    assert count(Inventory.of(model)) == (20, 120)
    model.more = Parameter(table[10:15])
    assert count(Inventory.of(model)) == (20, 120)
    model.other = Parameter(table[25:])
    assert count(Inventory.of(model)) == (25, 120)


# -- whole modules ------------------------------------------------------------------------------------


def folded(model: nn.Module) -> list[Group]:
    return list(collapse(groups(model), Inventory.of(model)))


def test_whole_modules_are_one_line():
    layer = nn.TransformerEncoderLayer(4, 2, 8)
    (group,) = folded(nn.ModuleDict({"a": layer, "b": linear(), "c": layer, "d": layer}))
    assert group.names == ("a", "c", "d")
    assert len(group.parts) == len(list(layer.parameters()))
    assert group.bytes == sum(p.numel() * 4 for p in layer.parameters())


def test_the_outermost_modules_are_named():
    tower = nn.Sequential(nn.Sequential(linear(), linear()), linear())
    assert [group.names for group in folded(nn.ModuleDict({"x": tower, "y": tower}))] == [("x", "y")]


def test_modules_whose_every_parameter_is_tied_are_folded():
    """Layers of a loop are modules of their own, of which nothing is left but what they read."""
    (group,) = folded(tied.nn.Looped(nn.TransformerEncoderLayer(8, 2, 16), 3))
    assert (group.names, len(group.parts)) == (("layers.0", "layers.1", "layers.2"), 12)
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    tied.tie(model, "b.weight", "a.weight")
    assert [group.names for group in folded(model)] == [("a.weight", "b.weight")]  # each has a bias of its own
    tied.tie(model, "b.bias", "a.bias")
    assert [group.names for group in folded(model)] == [("a", "b")]


def test_modules_that_are_tied_in_another_form_are_not_folded():
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    tied.tie(model, {"b.weight": "a.weight.T", "b.bias": "a.bias"})
    assert [group.names for group in folded(model)] == [("a.bias", "b.bias"), ("a.weight", "b.weight")]
    looped = tied.nn.Looped(nn.TransformerEncoderLayer(8, 2, 16), 2, private=["*.norm*"])
    assert {group.names for group in folded(looped)} == {
        (f"layers.0.{part}", f"layers.1.{part}") for part in ("self_attn", "linear1", "linear2")
    }


def test_a_module_with_a_parameter_of_its_own_is_not_folded():
    model = stack("a", "b")
    model.b.weight = model.a.weight
    assert [group.names for group in folded(model)] == [("a.weight", "b.weight")]
    model = nn.ModuleDict({"a": nn.Sequential(linear(), linear()), "b": nn.Sequential(linear(), linear())})
    model.b[0] = model.a[0]
    assert [group.names for group in folded(model)] == [("a.0", "b.0")]


def test_one_parameter_is_named_itself():
    table = nn.Embedding(5, 3)
    assert [group.names for group in folded(nn.ModuleDict({"a": table, "b": table}))] == [("a.weight", "b.weight")]


def test_buffers_of_their_own_do_not_keep_modules_apart():
    model = nn.ModuleDict({"a": nn.BatchNorm1d(3), "b": nn.BatchNorm1d(3)})
    model.b.weight, model.b.bias = model.a.weight, model.a.bias
    assert [group.names for group in folded(model)] == [("a", "b")]


def test_shared_buffers_are_part_of_the_whole():
    norm = nn.BatchNorm1d(3)
    (group,) = folded(nn.Sequential(norm, norm))
    assert (group.names, len(group.parts)) == (("0", "1"), 5)


def test_modules_that_hold_each_other_turned_are_not_folded():
    model = stack("a", "b")
    model.b.weight, model.b.bias = Parameter(model.a.weight.t()), Parameter(model.a.bias[:])
    assert [group.names for group in folded(model)] == [("a.weight", "b.weight"), ("a.bias", "b.bias")]


@pytest.mark.parametrize("larger", "ab")
def test_a_larger_module_is_not_folded_into_a_smaller_one(larger):
    model = stack("a", "b")
    model.b.weight, model.b.bias = model.a.weight, model.a.bias
    model[larger].extra = nn.Linear(2, 2)
    assert [group.names for group in folded(model)] == [("a.weight", "b.weight"), ("a.bias", "b.bias")]


def test_states_are_not_mixed():
    model = stack("a", "b")
    model.b.weight, model.b.bias = model.a.weight, Parameter(model.a.bias[:])
    assert [(g.state, g.names) for g in folded(model)] == [
        ("tied", ("a.weight", "b.weight")),
        ("half-tied", ("a.bias", "b.bias")),
    ]
