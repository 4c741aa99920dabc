"""Addresses: printed so that they are read back, whatever the names are."""

import pytest
from generated_expressions import addresses
from hypothesis import example, given, settings

from tied import ParseError, ref
from tied.algebra import parse, show_address
from tied.algebra.parser import parse_address

PRINTED = {
    ("weight",): "weight",
    ("layers", "0", "weight"): "layers.0.weight",
    ("0", "weight"): "0.weight",
    ("0",): '["0"]',
    ("0", "5"): '["0"].5',
    ("1", "e5"): '["1"].e5',
    ("1e5",): '["1e5"]',
    ("1e5", "weight"): "1e5.weight",
    ("1é",): "1é",
    ("my block", "weight"): '["my block"].weight',
    ("blocks", "my block"): 'blocks["my block"]',
    ("blocks", "a.b", "w"): 'blocks["a.b"].w',
    ("T",): "T",
    ("a", "T"): 'a["T"]',
    ("a", "flip", "w"): 'a["flip"].w',
    ("flip", "w"): "flip.w",
    ("cat", "w"): "cat.w",
    ("None",): '["None"]',
    ("a", "None"): "a.None",
    ("a", 'say "hi"'): 'a["say \\"hi\\""]',
    ("a", "tab\there"): 'a["tab\\there"]',
    ("größe", "naïve"): "größe.naïve",
    ("a", "]"): 'a["]"]',
    ("-1",): '["-1"]',
}


@pytest.mark.parametrize(("address", "text"), PRINTED.items(), ids=PRINTED.values())
def test_an_address_has_one_text(address: tuple[str, ...], text: str) -> None:
    assert show_address(address) == text
    assert parse_address(text) == address
    assert parse(text) == ref(address)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("layers[0].weight", ("layers", "0", "weight")),
        ("layers[-1].weight", ("layers", "-1", "weight")),
        ("layers [ 0 ] . weight", ("layers", "0", "weight")),
        ("[0].weight", ("0", "weight")),
        ("[0][1]", ("0", "1")),
        ("a['my block'].w", ("a", "my block", "w")),
        ("a['say \"hi\"']", ("a", 'say "hi"')),
        (r"a['don\'t']", ("a", "don't")),
        ("a.T", ("a", "T")),
        (" a.w ", ("a", "w")),
    ],
)
def test_an_address_that_stands_alone(text: str, address: tuple[str, ...]) -> None:
    """Without a model, every segment belongs to it, also a transform's name and a negative index."""
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", " ", ".", "a.", "a..b", ".a", "a b", 'a[""]', "a[", "a[x]", "a.w[0:1]", "a + b"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ParseError, match="at position"):
        parse_address(text)


@settings(max_examples=500, deadline=None)
@given(addresses)
@example(("\ud83d\ude00",))
@example(("a", "\ud83d", "\ude00"))
def test_every_address_is_read_back(address: tuple[str, ...]) -> None:
    assert parse_address(show_address(address)) == address


@settings(max_examples=500, deadline=None)
@given(addresses, addresses)
def test_every_address_is_read_back_inside_expressions(first: tuple[str, ...], second: tuple[str, ...]) -> None:
    one, two = ref(first), ref(second)
    for expression in [one, one.T, one[0], one[two], 2 * one - two, one.exp() @ two.flip(0), one[two][1:] / 3]:
        assert parse(str(expression)) == expression
        assert set(parse(str(expression)).sources()) <= {first, second}


def test_the_model_itself_is_named_in_words() -> None:
    assert show_address(()) == "the model itself"
