"""What people write: printed ties, lists, the same line twice, sides that are swapped, a block without `as`."""

import gc
import weakref

import pytest
import torch
from snapshot import refused
from torch import nn
from torch.nn.utils import parametrizations, prune

import tied
from tied.binding import late_reading
from tied.binding.slots import ModuleTree, _children, _kind


def autoencoder() -> nn.ModuleDict:
    return nn.ModuleDict({"encoder": nn.Linear(3, 5), "decoder": nn.Linear(5, 3), "other": nn.Linear(5, 3)})


WRITTEN = {
    "as printed": "decoder.weight = encoder.weight.T",
    "without spaces": "decoder.weight=encoder.weight.T",
    "a Tie": tied.Tie(("decoder", "weight"), tied.parse("encoder.weight.T")),
    "a list": ["decoder.weight = encoder.weight.T"],
    "a list of ties": [tied.Tie(("decoder", "weight"), tied.parse("encoder.weight.T"))],
    "a dict": {"decoder.weight": "encoder.weight.T"},
}


@pytest.mark.parametrize("written", WRITTEN.values(), ids=WRITTEN)
def test_an_equation_alone(written: object) -> None:
    model = autoencoder()
    assert [str(tie) for tie in tied.tie(model, written)] == ["decoder.weight = encoder.weight.T"]
    assert torch.equal(model.decoder.weight, model.encoder.weight.T)


def test_every_tie_as_printed_ties_a_twin() -> None:
    model, twin = autoencoder(), autoencoder()
    tied.tie(model, {"decoder.weight": "encoder.weight.T", "other.bias": "decoder.bias"})
    tied.tie(twin, list(tied.ties(model)))
    assert tied.ties(twin) == tied.ties(model)
    again = autoencoder()
    tied.tie(again, [str(tie) for tie in tied.ties(model)])
    assert tied.ties(again) == tied.ties(model)


def test_a_quoted_name_may_hold_an_equals_sign() -> None:
    model = nn.ModuleDict({"a=b": nn.Linear(2, 2), "c": nn.Linear(2, 2)})
    assert [str(tie) for tie in tied.tie(model, 'c.weight = ["a=b"].weight')] == ['c.weight = ["a=b"].weight']
    assert [str(tie) for tie in tied.tie(model, '["a=b"].bias = c.bias')] == ['["a=b"].bias = c.bias']


def test_several_targets_of_one_source() -> None:
    model = autoencoder()
    tied.tie(model, ["decoder.weight", "other.weight"], "encoder.weight.T")
    assert [str(tie) for tie in tied.ties(model)] == [
        "decoder.weight = encoder.weight.T",
        "other.weight = encoder.weight.T",
    ]


def test_the_same_equation_twice_is_no_error() -> None:
    model = autoencoder()
    first = tied.tie(model, "decoder.weight", "encoder.weight.T")
    link = vars(model.decoder)["_tied"]["weight"]
    assert tied.tie(model, "decoder.weight", "encoder.weight.T") == first
    assert tied.tie(model, ["decoder.weight", "decoder.weight", "other.weight"], "encoder.weight.T") == (
        *first,
        tied.Tie(("other", "weight"), tied.parse("encoder.weight.T")),
    )
    assert vars(model.decoder)["_tied"]["weight"] is link
    assert tied.tie(model, "other.weight", "decoder.weight") == (tied.ties(model)[1],)  # the same, by way of another


def test_another_equation_for_a_target_is_one() -> None:
    model = autoencoder()
    tied.tie(model, "decoder.weight", "encoder.weight.T")
    with refused(model, tied.TwiceTiedError):
        tied.tie(model, "decoder.weight", "2 * encoder.weight.T")
    with refused(model, tied.TwiceTiedError):
        tied.tie(autoencoder(), ["decoder.weight = encoder.weight.T", "decoder.weight = other.weight"])


def test_swapped_sides_are_named() -> None:
    message = """
tie(model, 'encoder.weight.T', 'decoder.weight')
  This is not an address.
  found:    encoder.weight.T, at position 1 of 'encoder.weight.T'
  expected: an address without transforms
  fix:      the target comes first, as in an assignment: tie(model, 'decoder.weight', 'encoder.weight.T')
The model was not changed.
"""
    model = autoencoder()
    with refused(model, tied.ParseError, message):
        tied.tie(model, "encoder.weight.T", "decoder.weight")
    tied.tie(model, "decoder.weight", "encoder.weight.T")  # the way out


def test_a_block_without_as_is_an_error() -> None:
    model = autoencoder()
    message = """
tying(model)
  Nothing was declared: the block did not use its stand-in for the model.
  found:    a block that assigns to the model itself, or to nothing
  expected: assignments to the stand-in
  fix:      with tied.tying(model) as m: m.decoder.weight = m.encoder.weight.T
The model was not changed.
"""
    with refused(model, tied.KindError, message), tied.tying(model):
        pass


def test_a_block_that_only_looks_is_none() -> None:
    with tied.tying(autoencoder()) as m:
        for name in ():
            setattr(m, name, m)
        assert str(m.encoder.weight) == "encoder.weight"


def test_tab_completes_in_a_block() -> None:
    model = autoencoder()
    with tied.tying(model) as m:
        assert dir(m) == ["decoder", "encoder", "other"]
        assert dir(m.decoder) == ["bias", "weight"]
        m.decoder.weight = m.encoder.weight.T


def test_one_name_is_of_the_kind_that_the_list_says() -> None:
    model = autoencoder()
    tied.tie(model, "decoder.weight", "encoder.weight.T")
    parametrizations.weight_norm(model.other)
    model["norm"], model["pruned"] = nn.BatchNorm1d(2), prune.l1_unstructured(nn.Linear(2, 2), "weight", 0.5)
    model["none"] = nn.Linear(2, 2, bias=False)
    for module in model.modules():
        listed = dict(_children(module))
        assert {name: _kind(module, name) for name in listed} == listed
        assert {_kind(module, name) for name in ("nothing", "training", "forward")} == {None}
    assert {slot.kind for slot in ModuleTree(model).slots()} == {"tied", "parameter", "buffer", "computed", "module"}
    assert _kind(model.none, "bias") is None


class Wide(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        for place in range(count):
            self.register_parameter(f"p{place}", nn.Parameter(torch.zeros(1)))


@pytest.mark.parametrize("count", [20, 40])
def test_one_class_is_made_for_all_ties_of_a_module(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    make = late_reading._made
    monkeypatch.setattr(late_reading, "_made", lambda base, names: made.append(names) or make(base, names))
    model = nn.ModuleDict({"a": Wide(count), "b": Wide(count)})
    tied.tie(model, {f"b.p{place}": f"2 * a.p{place}" for place in range(count)})
    assert len(tied.ties(model)) == count
    tied.untie(model)
    assert type(model.b) is Wide
    assert [len(names) for names in made] == [count]


def test_no_class_lives_longer_than_its_models() -> None:
    class Local(nn.Linear):
        pass

    model = nn.ModuleDict({"a": Local(2, 2), "b": Local(2, 2)})
    tied.tie(model, "b.weight", "a.weight.T")
    late, local = weakref.ref(type(model.b)), weakref.ref(Local)
    assert late() is not Local
    del model
    gc.collect()
    assert late() is None
    del Local
    gc.collect()
    assert local() is None
