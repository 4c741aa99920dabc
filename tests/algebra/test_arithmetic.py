"""Arithmetic: constants in one form, and printing that keeps the order of operations."""

import pytest
import torch

from tied import ParseError, ref
from tied.algebra import parse
from tied.algebra.arithmetic import Scale, ScaleBy, constants, number

A, B, C = ref("a"), ref("b"), ref("c")


@pytest.mark.parametrize(
    ("value", "form"),
    [
        (2, "2"),
        (2.0, "2"),
        (-0.0, "0"),
        (0.1, "0.1"),
        (1e-5, "1e-05"),
        (1e16, "1e+16"),
        (2**53, str(2**53)),
        (2**60, "1.152921504606847e+18"),
    ],
)
def test_a_constant_has_one_form(value: float, form: str) -> None:
    assert repr(number(value)) == form
    assert number(number(value)) == number(value)
    assert type(number(value)) is type(number(float(value)))


def test_lists_of_constants_are_data() -> None:
    assert constants([1.0, -1, 0.5]) == (1, -1, 0.5)
    assert constants([[1, 2], (3, 4)]) == ((1, 2), (3, 4))
    assert hash(ScaleBy(constants([[1, 2]]))) == hash(ScaleBy(((1, 2),)))
    assert str(A * [[1, 2], [3, 4]]) == "a * [[1, 2], [3, 4]]"


@pytest.mark.parametrize("values", [[1, [2]], [[1], [2, 3]], [[1], [[2]]], [[], [1]]])
def test_lists_of_unequal_length_are_refused(values: list) -> None:
    with pytest.raises(ParseError, match="These lists form no tensor"):
        A * values


@pytest.mark.parametrize("values", [["1"], [None], [A], [torch.ones(1)], [1j], [[True]]])
def test_lists_of_anything_but_numbers_are_refused(values: list) -> None:
    with pytest.raises(ParseError, match="not a constant to multiply by"):
        A * values


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        (A + B + C, "a + b + c"),
        (A + (B + C), "a + (b + c)"),
        (A - (B - C), "a - (b - c)"),
        (A + -B, "a - b"),
        (A - -B, "a + b"),
        (A + -2 * B, "a - 2 * b"),
        (A + (-B) / 2, "a + -b / 2"),
        (A - B / 2, "a - (b / 2)"),
        (A + -B * C, "a + -b * c"),
        (A - B * C, "a - (b * c)"),
        (-(A + B), "-(a + b)"),
        (-A + B, "-a + b"),
        (-A * B, "-a * b"),
        (A * -B, "a * -b"),
        (A * (-2 * B), "a * (-2 * b)"),
        (A * (B * C), "a * (b * c)"),
        (A * B * C, "a * b * c"),
        (A @ B @ C, "a @ b @ c"),
        (A @ (B @ C), "a @ (b @ c)"),
        (2 * A @ B, "2 * a @ b"),
        (2 * (A @ B), "2 * (a @ b)"),
        (A @ B * 2, "2 * (a @ b)"),
        (A / 2 * B, "a / 2 * b"),
        (2 * (A / 3), "2 * (a / 3)"),
        ((2 * A) / 3, "2 * a / 3"),
        (A / -3, "a / -3"),
        ((-A).exp(), "(-a).exp()"),
        (-A.exp(), "-a.exp()"),
        ((A + B).T, "(a + b).T"),
        ((A * [1, 2])[0], "(a * [1, 2])[0]"),
        ((A + B)[C], "(a + b)[c]"),
        (A[B + C], "a[b + c]"),
        (A * [1, 2] * B, "a * [1, 2] * b"),
        (B * (A * [1, 2]), "b * (a * [1, 2])"),
    ],
    ids=str,
)
def test_printing_keeps_the_order_of_operations(expression: object, text: str) -> None:
    assert str(expression) == text
    assert parse(text) == expression


def test_signs_merge_and_other_constants_stay() -> None:
    assert str(-(2 * -A)) == "2 * a"
    assert -(2 * A) == -2 * A == 2 * -A
    assert str(2 * (3 * A)) == "2 * (3 * a)"  # 6 * a would round differently
    assert str(-(A / 3)) == "-(a / 3)"
    assert 1 * A == A == A / 1


def test_the_sign_of_a_zero_stays() -> None:
    value = (-(0 * A)).reciprocal().value({("a",): torch.ones(1)})
    assert value.item() == float("-inf")


def test_a_constant_list_takes_the_dtype_of_its_operand() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert (A * [1, 0.5]).value({("a",): torch.ones(2, dtype=dtype)}).dtype == dtype


def test_scaling_by_zero_keeps_what_is_there() -> None:
    present = torch.tensor([1.0, 2.0])
    assert torch.equal(Scale(0).right_inverse(torch.zeros(2), present), present)
    assert torch.equal(Scale(4).right_inverse(torch.ones(2), present), torch.full((2,), 0.25))
    assert torch.equal(Scale(4, divide=True).right_inverse(torch.ones(2), present), torch.full((2,), 4.0))


def test_kron_takes_any_strides() -> None:
    """torch.kron itself refuses some (2.13)."""
    x, y = torch.randn(3, 4, 5).permute(2, 0, 1), torch.randn(2, 2).t()
    found = parse("kron(a, b)").value({("a",): x, ("b",): y})
    assert torch.equal(found, torch.kron(x.contiguous(), y.contiguous()))
