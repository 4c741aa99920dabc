"""Which target gets which source: dicts, modules, patterns, schedules of layers."""

import itertools

import pytest
import torch
from snapshot import refused
from stack import Stack
from torch import nn

import tied
from tied.binding import schedule


def tie_names(model: nn.Module) -> list[str]:
    return [str(tie) for tie in tied.ties(model)]


@pytest.fixture
def model() -> Stack:
    return Stack()


# -- patterns -----------------------------------------------------------------------------------------


def test_a_source_without_star_serves_all_targets_but_itself(model: Stack) -> None:
    tied.tie(model, "layers.*.mlp", "layers.0.mlp")
    assert tie_names(model) == [
        f"layers.{layer}.mlp.{name} = layers.0.mlp.{name}" for layer in (1, 2) for name in ("weight", "bias")
    ]


@pytest.mark.parametrize(
    "pattern", ["layers.*.norm.weight", "layers[*].norm.weight", "layers.*.*.weight", "**.norm.weight"]
)
def test_patterns_of_tensors(model: Stack, pattern: str) -> None:
    if pattern == "layers.*.*.weight":
        model.layers = nn.ModuleList(nn.ModuleDict({"norm": nn.LayerNorm(4)}) for _ in range(3))
    tied.tie(model, pattern, "layers[0].norm.weight")
    assert tie_names(model) == [f"layers.{i}.norm.weight = layers.0.norm.weight" for i in (1, 2)]


def test_stars_of_the_target_fill_the_stars_of_the_source() -> None:
    model = nn.ModuleDict(
        {
            "encoder": nn.ModuleList([nn.Linear(6, 5), nn.Linear(5, 4)]),
            "decoder": nn.ModuleList([nn.Linear(5, 6), nn.Linear(4, 5)]),
        }
    )
    tied.tie(model, "decoder.*.weight", "encoder.*.weight.T")
    assert tie_names(model) == [f"decoder.{i}.weight = encoder.{i}.weight.T" for i in (0, 1)]


def test_a_star_with_spaces_multiplies(model: Stack) -> None:
    tied.tie(model, "layers.1.mlp.weight", "2 * layers.0.mlp.weight")
    tied.tie(model, "layers.2.mlp.*", "layers.0.mlp.*")
    assert tie_names(model)[0] == "layers.1.mlp.weight = 2 * layers.0.mlp.weight"
    assert len(tie_names(model)) == 3


def test_stars_must_correspond(model: Stack) -> None:
    message = """
tie(model, 'layers.*.mlp', 'layers.*.*')
  The patterns do not correspond.
  found:    1 * in the target, 2 in the source 'layers.*.*'
  expected: as many in the source as in the target, or none
  fix:      tie(model, 'decoder.*.weight', 'encoder.*.weight')
The model was not changed."""
    with refused(model, tied.ParseError, message):
        tied.tie(model, "layers.*.mlp", "layers.*.*")


def test_a_pattern_that_matches_only_its_source_is_an_error(model: Stack) -> None:
    with refused(model, tied.AddressError):
        tied.tie(model, "layers.0.ml*", "layers.0.mlp")


def test_towers_with_ties_of_their_own() -> None:
    def tower() -> nn.Module:
        made = nn.ModuleDict({"a": nn.Linear(3, 2), "b": nn.Linear(2, 3)})
        tied.tie(made, "b.weight", "a.weight.T")
        return made

    model = nn.ModuleDict({"left": tower(), "right": tower()})
    tied.tie(model, "right", "left")
    assert set(tie_names(model)) == {
        "left.b.weight = left.a.weight.T",
        "right.a.weight = left.a.weight",
        "right.a.bias = left.a.bias",
        "right.b.bias = left.b.bias",
        "right.b.weight = left.a.weight.T",
    }
    assert sum(p.numel() for p in model.parameters()) == 6 + 2 + 3


def test_a_whole_module_of_another_build(model: Stack) -> None:
    model.layers[1] = nn.ModuleDict({"mlp": nn.Linear(4, 4, bias=False), "norm": nn.LayerNorm(4)})
    message = """
tie(model, 'layers.1', 'layers.0')
  'layers.1' and 'layers.0' are not built alike.
  found:    only 'layers.0' has mlp.bias
  expected: the same names in both modules
  fix:      tie the parts that they have in common, one by one or by a pattern
The model was not changed."""
    with refused(model, tied.ShapeError, message):
        tied.tie(model, "layers.1", "layers.0")


def test_a_module_tied_to_itself_is_nothing_to_do(model: Stack) -> None:
    with refused(model, tied.KindError):
        tied.tie(model, "layers.0", "layers.0")


# -- schedules ----------------------------------------------------------------------------------------

SCHEDULES = {
    ("all", 4, None): [0, 0, 0, 0],
    ("sequence", 6, 3): [0, 0, 1, 1, 2, 2],
    ("sequence", 5, 2): [0, 0, 0, 1, 1],
    ("cycle", 6, 3): [0, 1, 2, 0, 1, 2],
    ("cycle", 5, 2): [0, 1, 0, 1, 0],
    ("cycle_rev", 6, 3): [0, 1, 2, 2, 1, 0],
    ("cycle_rev", 9, 3): [0, 1, 2, 0, 1, 2, 2, 1, 0],
    ("cycle_rev", 3, 3): [2, 1, 0],
    ("sandwich", 5, None): [0, 1, 1, 1, 2],
    ("sandwich", 6, 4): [0, 1, 1, 2, 2, 3],
    ("sandwich", 3, 3): [0, 1, 2],
    ("immediate", 6, None): [0, 0, 1, 1, 2, 2],
    ("immediate", 5, None): [0, 0, 1, 1, 2],
    ("all", 1, None): [0],
}


@pytest.mark.parametrize("key", SCHEDULES)
def test_schedules(key: tuple[str, int, int | None]) -> None:
    assert schedule(*key) == SCHEDULES[key]


@pytest.mark.parametrize("pattern", ["sequence", "cycle", "cycle_rev", "sandwich"])
@pytest.mark.parametrize(
    ("count", "unique"), [p for p in itertools.product(range(1, 13), range(1, 13)) if p[1] <= p[0]]
)
def test_schedules_use_every_unique_layer(pattern: str, count: int, unique: int) -> None:
    if pattern == "sandwich" and unique < 3:
        with pytest.raises(tied.ShapeError):
            schedule(pattern, count, unique)
    else:
        assert set(schedule(pattern, count, unique)) == set(range(unique))
        assert len(schedule(pattern, count, unique)) == count


@pytest.mark.parametrize(
    ("pattern", "unique"), [("cycle", None), ("cycle", 0), ("cycle", 9), ("all", 2), ("immediate", 4), ("sequence", -1)]
)
def test_schedules_refuse(pattern: str, unique: int | None) -> None:
    with pytest.raises(tied.ShapeError, match="unique does not fit the pattern"):
        schedule(pattern, 6, unique)


def test_unknown_pattern(model: Stack) -> None:
    message = """
tie_layers(model, 'layers', pattern='zigzag', unique=None)
  'zigzag' is not a pattern of layers.
  found:    'zigzag'
  expected: all, sequence, cycle, cycle_rev, sandwich, immediate
  fix:      tie_layers(model, 'layers', pattern='cycle', unique=3)
The model was not changed."""
    with refused(model, tied.KindError, message):
        tied.tie_layers(model, "layers", pattern="zigzag")  # type: ignore[arg-type]


def test_tie_layers_with_private_parts() -> None:
    model = Stack(depth=6)
    made = tied.tie_layers(model, "layers", pattern="cycle_rev", unique=3, private=["*.norm*", "*.bias"])
    assert [str(t) for t in made] == [
        "layers.3.mlp.weight = layers.2.mlp.weight",
        "layers.4.mlp.weight = layers.1.mlp.weight",
        "layers.5.mlp.weight = layers.0.mlp.weight",
    ]


def test_tie_layers_keeps_buffers_private() -> None:
    model = nn.ModuleDict({"layers": nn.ModuleList(nn.BatchNorm1d(3) for _ in range(3))})
    tied.tie_layers(model, "layers")
    assert len([name for name in model.state_dict() if "running_mean" in name]) == 3
    assert len(list(model.parameters())) == 2


def test_buffers_of_layers_are_shared_where_asked() -> None:
    model = nn.ModuleDict({"layers": nn.ModuleList(nn.BatchNorm1d(3) for _ in range(3))})
    tied.tie_layers(model, "layers")
    tied.tie(model, "layers.*.running_mean", "layers.0.running_mean", buffers=True)
    assert len([name for name, _ in model.named_buffers() if "running_mean" in name]) == 1
    tied.tie(model, "layers.*", "layers.0", buffers=True)
    assert len([*model.parameters(), *model.buffers()]) == 5
    assert len(model.state_dict()) == 15, "as in plain torch"


def test_tie_layers_counts_parameters_exactly() -> None:
    model = Stack(depth=6)
    each = sum(p.numel() for p in model.layers[0].parameters())
    rest = sum(p.numel() for p in model.parameters()) - 6 * each
    tied.tie_layers(model, "layers", pattern="cycle", unique=2)
    assert sum(p.numel() for p in model.parameters()) == rest + 2 * each


def test_tie_layers_with_the_mean_of_all() -> None:
    model = Stack(depth=4).double()
    mean = sum(layer.mlp.weight.detach() for layer in model.layers) / 4
    tied.tie_layers(model, "layers", private=["*.norm*"], keep="mean")
    assert abs(model.layers[3].mlp.weight - mean).max() < 1e-15


def test_tie_layers_of_a_stack_that_is_the_model() -> None:
    stack = nn.ModuleList(nn.Linear(3, 3) for _ in range(3))
    tied.tie_layers(stack, "", private=["*.bias"])
    assert tie_names(stack) == ["1.weight = 0.weight", "2.weight = 0.weight"]


@pytest.mark.parametrize("layers", ["encoder", "nothing"])
def test_tie_layers_needs_a_stack(model: Stack, layers: str) -> None:
    with refused(model, tied.TieError):
        tied.tie_layers(model, layers)


def test_a_private_pattern_that_matches_nothing_is_an_error(model: Stack) -> None:
    with refused(model, tied.AddressError, None):
        tied.tie_layers(model, "layers", private=["*.nrom*"])


def test_modules_with_computed_weights_are_tied_by_what_computes_them() -> None:
    norm = torch.nn.utils.parametrizations.weight_norm
    model = nn.ModuleDict({"a": norm(nn.Linear(3, 3)), "b": norm(nn.Linear(3, 3))})
    made = tied.tie(model, "b", "a")
    names = ["bias", "parametrizations.weight.original0", "parametrizations.weight.original1"]
    assert [str(tie) for tie in made] == [f"b.{name} = a.{name}" for name in names]
    assert torch.equal(model["a"].weight, model["b"].weight)


def test_a_property_that_computes_a_tensor_is_a_source() -> None:
    model = nn.ModuleDict({"circulant": tied.nn.CirculantLinear(4), "plain": nn.Linear(4, 4)})
    tied.tie(model, "plain.weight", "circulant.weight.T")
    assert torch.equal(model["plain"].weight, model["circulant"].weight.T)
    model["plain"](torch.ones(1, 4)).sum().backward()
    gradients = {name: p.grad for name, p in model["circulant"].named_parameters()}
    assert gradients["theta"] is not None
    reader = tied.nn.TiedLinear(model["circulant"])
    assert torch.equal(reader.weight, model["circulant"].weight.T)
    with pytest.raises(tied.KindError, match="computed"):
        tied.tie(model, "circulant.weight", "plain.bias[None]")


def test_a_text_for_the_private_patterns_is_refused() -> None:
    with pytest.raises(tied.KindError) as error:
        tied.tie_layers(Stack(), "layers", private="*.norm*")
    assert str(error.value) == (
        "tie_layers(model, 'layers', pattern='all', unique=None)\n"
        "  private is a list of patterns, not a text.\n"
        "  found:    private='*.norm*'\n"
        "  expected: a list\n"
        "  fix:      private=['*.norm*']\n"
        "The model was not changed."
    )
