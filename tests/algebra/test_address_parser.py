"""Addresses against a model: greedy, so that any name that a model has is found; else the nearest names are offered."""

import re

import pytest
from generated_expressions import Names, trees
from hypothesis import given, settings
from torch import nn

from tied import AddressError, ParseError
from tied.algebra import Ref, parse, show_address
from tied.algebra.parser import parse_address
from tied.binding.slots import ModuleTree


def block() -> nn.Module:
    return nn.Linear(2, 2)


def model() -> nn.Module:
    """A model whose modules have the names of transforms, functions and numbers."""
    names = ["T", "flip", "cat", "kron", "exp", "my block", "1e5", "None", "encoder", "²"]
    tree = nn.ModuleDict({name: block() for name in names})
    tree["act"] = nn.ReLU()
    tree["layers"] = nn.ModuleList([block(), block(), block()])
    tree["flip"].add_module("T", block())
    tree["heads"] = nn.ParameterList([nn.Parameter(block().weight), nn.Parameter(block().weight)])
    return tree


NAMED = ModuleTree(model())
NUMBERED = ModuleTree(nn.Sequential(*(block() for _ in range(4))))
LISTED = ModuleTree(nn.ParameterList([block().weight, block().weight]))
NESTED = ModuleTree(nn.ModuleList([nn.ModuleList([block()]), nn.ModuleList([block(), block()])]))


@pytest.mark.parametrize(
    ("tree", "text", "canonical"),
    [
        (NAMED, "T.weight.T", "T.weight.T"),
        (NAMED, "flip.weight.flip(0)", "flip.weight.flip(0)"),
        (NAMED, "flip.T.weight.T", 'flip["T"].weight.T'),
        (NAMED, "cat.weight", "cat.weight"),
        (NAMED, "cat([cat.weight, kron.weight], 0)", "cat([cat.weight, kron.weight], 0)"),
        (NAMED, "exp.weight.exp()", "exp.weight.exp()"),
        (NAMED, '["my block"].weight.T', '["my block"].weight.T'),
        (NAMED, "['my block'].weight", '["my block"].weight'),
        (NAMED, "1e5.weight", "1e5.weight"),
        (NAMED, "2 * 1e5.weight", "2 * 1e5.weight"),
        (NAMED, "None.weight", '["None"].weight'),
        (NAMED, "heads.0[None.bias]", 'heads.0[["None"].bias]'),
        (NAMED, "layers.0.weight", "layers.0.weight"),
        (NAMED, "layers[0].weight", "layers.0.weight"),
        (NAMED, "layers[-1].weight", "layers.2.weight"),
        (NAMED, "layers[ -3 ] . weight", "layers.0.weight"),
        (NAMED, 'layers["1"].weight', "layers.1.weight"),
        (NAMED, "layers[0].weight[0]", "layers.0.weight[0]"),
        (NAMED, "heads[-1].T[1]", "heads.1.T[1]"),
        (NAMED, "encoder.weight[layers[0].weight]", "encoder.weight[layers.0.weight]"),
        (NAMED, "encoder", "encoder"),
        (NAMED, "layers[1]", "layers.1"),
        (NUMBERED, "0.weight", "0.weight"),
        (NUMBERED, "[0].weight.T", "0.weight.T"),
        (NUMBERED, "[-1].weight", "3.weight"),
        (NUMBERED, "2 * 0.weight / 3", "2 * 0.weight / 3"),
        (NUMBERED, "0.weight[1:3, 0]", "0.weight[1:3, 0]"),
        (NUMBERED, "0.weight.transpose(0, 1)", "0.weight.transpose(0, 1)"),
        (NUMBERED, "cat([0.weight, 1.weight], 0)", "cat([0.weight, 1.weight], 0)"),
        (NUMBERED, "0.weight * [1, 2]", "0.weight * [1, 2]"),
        (NUMBERED, "0.weight * [1]", "0.weight * [1]"),
        (NUMBERED, "[1] * 0.weight", "0.weight * [1]"),
        (NUMBERED, "1", '["1"]'),
        (NUMBERED, " [ 1 ] ", '["1"]'),
        (NUMBERED, "[-1]", '["3"]'),
        (LISTED, "0", '["0"]'),
        (LISTED, "0.T", '["0"].T'),
        (LISTED, "0[1:]", '["0"][1:]'),
        (LISTED, "[0][1:]", '["0"][1:]'),
        (LISTED, '2 * ["0"]', '2 * ["0"]'),
        (NESTED, "0.0.weight", "0.0.weight"),
        (NESTED, "1[0].weight", "1.0.weight"),
        (NESTED, "[-1][-1].weight", "1.1.weight"),
        (NESTED, "1.0", '["1"].0'),
    ],
    ids=str,
)
def test_names_of_the_model_come_first(tree: ModuleTree, text: str, canonical: str) -> None:
    assert str(parse(text, tree)) == canonical
    assert str(parse(canonical, tree)) == canonical


@settings(max_examples=300, deadline=None)
@given(trees)
def test_every_name_of_every_model_is_found(tree: Names) -> None:
    for address in tree.leaves():
        shown = show_address(address)
        assert parse(shown, tree) == Ref(address)
        assert parse_address(shown, tree) == address
        assert parse(f"2 * {shown}.T[0]", tree) == 2 * Ref(address).T[0]


@settings(max_examples=300, deadline=None)
@given(trees)
def test_plain_dots_are_enough_where_they_can_be(tree: Names) -> None:
    """A word that the model has is its child, even where it is the name of a transform."""
    for address in tree.leaves():
        if all(segment.isidentifier() and re.fullmatch(r"\w+", segment) and segment != "None" for segment in address):
            assert parse(".".join(address), tree) == Ref(address)


ENCODER = ModuleTree(nn.ModuleDict({"encoder": block(), "decoder": block(), "layers": nn.ModuleList([block()] * 7)}))

MESSAGES = {
    "encodr.weight.T": """
'encodr.weight.T' is not a parameter, buffer or module of ModuleDict.
  found:    the model has no 'encodr'
  expected: one of 'decoder', 'encoder', 'layers'
  fix:      did you mean 'encoder' or 'decoder'?
The model was not changed.""",
    "2 * encoder.wieght + decoder.weight": """
'encoder.wieght' is not a parameter, buffer or module of ModuleDict.
  found:    'encoder' has no 'wieght'
  expected: one of 'bias', 'weight'
  fix:      did you mean 'weight'?
The model was not changed.""",
    "layers[7].weight": """
'layers.7.weight' is not a parameter, buffer or module of ModuleDict.
  found:    'layers' has no '7'
  expected: one of '0', '1', '2', '3', '4' ...
  fix:      list the names with dict(model.named_parameters())
The model was not changed.""",
    "layers[-8].weight": """
'layers["-8"].weight' is not a parameter, buffer or module of ModuleDict.
  found:    'layers' has no '-8'
  expected: one of '0', '1', '2', '3', '4' ...
  fix:      list the names with dict(model.named_parameters())
The model was not changed.""",
}


@pytest.mark.parametrize(("text", "message"), MESSAGES.items(), ids=MESSAGES)
def test_a_wrong_name_gets_the_nearest_ones(text: str, message: str) -> None:
    with pytest.raises(AddressError) as caught:
        parse(text, ENCODER)
    assert str(caught.value) == message.strip()


@pytest.mark.parametrize(
    ("tree", "text", "found"),
    [
        (NUMBERED, "4.weight", "the model has no '4'"),
        (NUMBERED, "[4].weight", "the model has no '4'"),
        (NUMBERED, "[-5].weight", "the model has no '-5'"),
        (NUMBERED, "4", "the model has no '4'"),
        (NAMED, "layers[00].weight", "'layers' has no '00'"),
        (NAMED, "layers[" + "9" * 5000 + "].weight", f"'layers' has no '{'9' * 57}...'"),
        (NAMED, "layers[-" + "9" * 5000 + "].weight", f"'layers' has no '-{'9' * 56}...'"),
        (NAMED, "act.weight", "'act' has no 'weight'"),
        (NAMED, "act[0]", "'act' has no '0'"),
        (NAMED, "encoder[-1].w", "'encoder' has no '-1'"),
        (NAMED, "encoder.weights", "'encoder' has no 'weights'"),
        (NAMED, "encoder.weighs(2)", "'encoder' has no 'weighs'"),
    ],
)
def test_a_missing_child_is_named(tree: ModuleTree, text: str, found: str) -> None:
    with pytest.raises(AddressError) as caught:
        parse(text, tree)
    assert caught.value.found == found


def test_a_negative_index_counts_from_the_largest_number() -> None:
    """Whatever the order in which the model names its children."""
    tree = Names({"layers": {"10": {"w": None}, "2": {"w": None}, "0": {"w": None}, "norm": {"w": None}}})
    found = [str(parse(f"layers[-{back}].w", tree)) for back in (1, 2, 3)]
    assert found == ["layers.10.w", "layers.2.w", "layers.0.w"]
    with pytest.raises(AddressError):
        parse("layers[-4].w", tree)


def test_behind_a_tensor_only_transforms_can_come() -> None:
    with pytest.raises(ParseError, match=r"'bias' is not a transform") as caught:
        parse("encoder.weight.bias", ENCODER)
    assert "at position 16 of" in caught.value.found


@pytest.mark.parametrize("text", ["encoder.weight.T", "2 * encoder.weight", "encoder.weight[0]"])
def test_a_transform_is_no_part_of_an_address(text: str) -> None:
    with pytest.raises(ParseError):
        parse_address(text, ENCODER)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("a.exp", 'a["exp"]'),
        ("a.exp()", "a.exp()"),
        ("a.exp.w", 'a["exp"].w'),
        ("a.T", "a.T"),
        ('a["T"].T', 'a["T"].T'),
        ("a[0].w", "a.0.w"),
        ("a[0].T", "a[0].T"),
        ("a[0]", "a[0]"),
        ("a.0", "a.0"),
        ("[0].w", "0.w"),
        ("0.w", "0.w"),
        ("flip.w.flip(0)", "flip.w.flip(0)"),
        ("cat.w", "cat.w"),
        ("cat", "cat"),
    ],
)
def test_without_a_model_transforms_come_first(text: str, canonical: str) -> None:
    assert str(parse(text)) == canonical
    assert parse(canonical) == parse(text)
