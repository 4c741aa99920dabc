"""One module at several places of a model, and modules put in each other's places after a tie."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from snapshot import refused
from torch import nn

import tied


def shared_module() -> nn.ModuleDict:
    """`encoder` and `embed` are one module."""
    model = nn.ModuleDict({"embed": nn.Embedding(7, 3), "other": nn.Embedding(7, 3), "third": nn.Embedding(7, 3)})
    model["encoder"] = model["embed"]
    return model


def tied_model() -> nn.ModuleDict:
    model = nn.ModuleDict(
        {"embed": nn.Embedding(7, 3), "encoder": nn.Embedding(7, 3), "head": nn.Linear(3, 7, bias=False)}
    )
    tied.tie(model, {"encoder.weight": "embed.weight", "head.weight": "embed.weight"})
    return model


# -- declaring ----------------------------------------------------------------------------------------


def test_a_tie_between_two_places_of_one_module_is_refused() -> None:
    """It would leave no tensor at all."""
    model = shared_module()
    message = """
tie(model, 'encoder.weight', 'embed.weight')
  'encoder.weight' and 'embed.weight' are one tensor already.
  found:    one Embedding that stands at both places
  expected: a source other than the target
  fix:      leave this tie out
The model was not changed.
"""
    with refused(model, tied.CycleError, message):
        tied.tie(model, "encoder.weight", "embed.weight")


def test_so_is_one_by_pattern_or_by_module() -> None:
    model = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(3, 3)] * 2)})
    for declare in (
        lambda: tied.tie(model, "layers.*", "layers.0"),
        lambda: tied.tie(model, "layers.1", "layers.0"),
        lambda: tied.tie(model, "layers.1.weight", "layers.0.weight.T"),
    ):
        with refused(model, tied.CycleError):
            declare()


def test_a_circle_by_way_of_the_other_place_is_refused() -> None:
    model = shared_module()
    tied.tie(model, "embed.weight", "other.weight")
    with refused(model, tied.CycleError):
        tied.tie(model, "other.weight", "encoder.weight")


def test_a_target_named_by_both_places_is_defined_once() -> None:
    model = shared_module()
    with refused(model, tied.TwiceTiedError):
        tied.tie(model, {"embed.weight": "other.weight", "encoder.weight": "third.weight"})


def test_ties_are_named_by_the_first_place() -> None:
    model = shared_module()
    assert [str(t) for t in tied.tie(model, "encoder.weight", "other.weight")] == ["embed.weight = other.weight"]
    assert [str(t) for t in tied.tie(model, "third.weight", "encoder.weight")] == ["third.weight = other.weight"]


# -- modules put in each other's places ---------------------------------------------------------------


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "the model itself": lambda model: model,
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
}


@pytest.mark.parametrize("how", COPIES)
def test_the_source_in_the_place_of_its_target(how: str) -> None:
    """As transformers does with T5's embeddings: nothing is cut, and `retie` has nothing to do."""
    model = tied_model()
    model["encoder"] = model["embed"]
    model = COPIES[how](model)
    assert tied.retie(model) == ()
    assert [name for name, _ in model.named_parameters()] == ["embed.weight"]
    assert model["encoder"].weight is model["embed"].weight is model["head"].weight


def test_the_target_in_the_place_of_its_source() -> None:
    """As transformers does with Marian's embeddings: the source is gone, and the weight lives on, as in plain torch."""
    model = tied_model()
    weight = model["embed"].weight
    model["embed"] = model["encoder"]
    assert model["embed"].weight is model["encoder"].weight is model["head"].weight is weight
    assert model["head"](torch.ones(1, 3)).shape == (1, 7)
    assert [id(parameter) for parameter in model.parameters()].count(id(weight)) == 1
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin["embed"].weight is twin["encoder"].weight is twin["head"].weight is not weight


def test_targets_in_the_places_of_each_others_sources() -> None:
    model = nn.ModuleDict({name: nn.Linear(3, 3, bias=False) for name in "abcd"})
    tied.tie(model, {"b.weight": "a.weight", "d.weight": "c.weight"})
    first, second = model["a"].weight, model["c"].weight
    model["a"], model["c"] = model["d"], model["b"]
    assert [model[name].weight is first for name in "abcd"] == [False, True, True, False]
    assert [model[name].weight is second for name in "abcd"] == [True, False, False, True]


def test_a_target_in_the_place_of_another_source_is_no_source_of_it() -> None:
    model = nn.ModuleDict({name: nn.Linear(3, 3, bias=False) for name in "abcd"})
    tied.tie(model, {"b.weight": "a.weight", "d.weight": "c.weight"})
    second = model["c"].weight
    model["c"] = model["b"]
    assert model["d"].weight is second
    assert model["b"].weight is model["a"].weight


def test_a_circle_through_two_models_ends() -> None:
    """What replaced a source is followed, and a slot that leads back to itself holds what it holds."""
    one, two = (nn.ModuleDict({name: nn.Linear(3, 3, bias=False) for name in names}) for names in ("ab", "cd"))
    tied.tie(one, "b.weight", "a.weight")
    tied.tie(two, "d.weight", "c.weight")
    kept = two["d"].weight
    one["a"], two["c"] = two["d"], one["b"]
    for _ in range(2):
        assert one["b"].weight is two["d"].weight is kept
