"""Bends, cuts and moves: ranges, right inverses, and what they leave alone."""

import pytest
import torch

from tied import InverseError
from tied.algebra import parse
from tied.algebra.pointwise import ROWS, Cast, Detach, Place, Pointwise

RANGES = {
    "exp": [1e-6, 0.3, 1.0, 7.5, 1e6],
    "softplus": [1e-6, 1e-3, 0.5, 1.0, 19.0, 20.0, 20.5, 1e6],
    "square": [0.0, 1e-8, 2.0, 1e8],
    "sigmoid": [1e-6, 0.25, 0.5, 0.999],
    "reciprocal": [-1e6, -0.5, 1e-6, 3.0],
}
OUTSIDE = {
    "exp": [0.0, -1.0, float("nan")],
    "softplus": [0.0, -1.0],
    "square": [-1e-9],
    "sigmoid": [0.0, 1.0, 1.5, -0.5],
    "reciprocal": [0.0],
}


def test_every_bend_has_its_ranges() -> None:
    assert set(RANGES) == set(OUTSIDE) == set(ROWS)


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_right_inverse_gives_the_value_back(name: str, dtype: torch.dtype) -> None:
    """Up to the rounding of the operand x, which changes exp(x) by |x| ulp."""
    value, bend = torch.tensor(RANGES[name], dtype=dtype), Pointwise(name)
    found = bend.right_inverse(value, torch.zeros_like(value))
    error = (bend.forward(found) - value).abs() / value.abs().clamp(min=torch.finfo(dtype).tiny)
    assert (error <= found.abs().clamp(min=4) * torch.finfo(dtype).eps).all()


@pytest.mark.parametrize("name", OUTSIDE)
def test_values_outside_the_range_are_refused(name: str) -> None:
    good = RANGES[name][:2]
    for wrong in OUTSIDE[name]:
        value = torch.tensor([*good, wrong])
        with pytest.raises(InverseError) as caught:
            Pointwise(name).right_inverse(value, torch.full_like(value, 0.7))
        assert caught.value.found == "1 of 3 entries outside the range"
        assert caught.value.expected == ROWS[name].range


def test_the_message_names_the_range_and_a_way_out() -> None:
    with pytest.raises(InverseError) as caught:
        Pointwise("sigmoid").right_inverse(torch.tensor([0.5, 1.0, 2.0]), torch.zeros(3))
    assert str(caught.value) == (
        ".sigmoid() never gives some of these values.\n"
        "  found:    2 of 3 entries outside the range\n"
        "  expected: values between 0 and 1\n"
        "  fix:      correct the values (clamp them), or untie the target first\n"
        "The model was not changed."
    )


@pytest.mark.parametrize("name", ROWS)
def test_entries_that_give_their_value_already_stay(name: str) -> None:
    """Bit for bit, and also where the bend has rounded to the edge of its range."""
    present = torch.tensor([-800.0, -3.3, -1e-9, 0.1, 2.2, 50.0, 800.0])
    bend = Pointwise(name)
    assert torch.equal(bend.right_inverse(bend.forward(present), present), present)


def test_square_keeps_the_present_signs() -> None:
    present = torch.tensor([-2.0, 3.0, -0.0, 0.0])
    assert Pointwise("square").right_inverse(torch.full((4,), 9.0), present).tolist() == [-3, 3, -3, 3]


def test_softplus_does_not_overflow() -> None:
    value = torch.tensor([1e3, 1e30], dtype=torch.float64)
    assert torch.equal(Pointwise("softplus").right_inverse(value, torch.zeros(2).double()), value)


def test_cutting_lets_no_gradient_through() -> None:
    source = torch.ones(2, requires_grad=True)
    assert not parse("a.detach()").value({("a",): source}).requires_grad
    assert parse("a.T.detach()").value({("a",): torch.ones(2, 2, requires_grad=True)}).grad_fn is None
    value, present = torch.randn(2), torch.zeros(2)
    assert torch.equal(Detach().right_inverse(value, present), value)


def test_moving_goes_back_to_where_the_operand_is() -> None:
    value, present = torch.ones(2, dtype=torch.float16), torch.zeros(2, dtype=torch.float64)
    assert Cast(torch.float16).right_inverse(value, present).dtype == torch.float64
    assert Place("cpu").right_inverse(value, present).device.type == "cpu"
    (back,) = Cast(torch.float16).adjoint(value, present)
    assert back.dtype == torch.float64
    (back,) = Place("cpu").adjoint(value, present)
    assert back.device == present.device


def test_a_place_is_known_without_going_there() -> None:
    meta = torch.empty(2, device="meta")
    assert parse('a.to("cuda:7")').infer({("a",): meta}) is meta
    assert Place("cuda").device([torch.device("cpu")]) == {torch.device("cuda:0")}
    assert Place("cuda:1").device([]) == {torch.device("cuda:1")}
    assert Place("meta").device([torch.device("cpu")]) == {torch.device("meta")}
