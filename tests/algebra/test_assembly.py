"""Joining and gathering: what they take, and an index that can only point at an entry, or at nothing."""

import pytest
import torch

import tied
from tied import KindError, ParseError, ShapeError, cat, ref, stack
from tied.algebra import adjoint, parse
from tied.algebra.assembly import Gather, Join

A, B = ref("a"), ref("b")
GATHER = parse("a[i]")


def gathered(theta: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return GATHER.value({("a",): theta, ("i",): index})


def test_joins() -> None:
    assert cat([A, B]) == cat((A, B), 0) == cat([A, B], dim=0)
    assert cat([A, B]) != stack([A, B])
    assert cat([A, B]).transform == Join(0)
    assert stack([A], -1).transform == Join(-1, new_axis=True)
    assert cat([A]) != A


@pytest.mark.parametrize(
    ("expressions", "dim"),
    [(A, 0), ("ab", 0), (5, 0), ([A], 0.0), ([A], True), ([A], (0,)), ([A], B), ((e for e in [A]), 0)],
)
def test_joins_take_a_list_and_a_whole_number(expressions: object, dim: object) -> None:
    for join in (cat, stack):
        with pytest.raises(ParseError, match="joined as in torch"):
            join(expressions, dim)


def test_nothing_cannot_be_joined() -> None:
    with pytest.raises(ParseError, match="Nothing to join"):
        cat([])
    with pytest.raises(KindError):
        stack([None])


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8])
def test_minus_one_is_a_zero(dtype: torch.dtype) -> None:
    """Also for more entries than the index's own dtype can count."""
    theta = torch.arange(1.0, 201.0)
    assert gathered(theta, torch.tensor([0, -1, 127], dtype=dtype)).tolist() == [1, 0, 128]


def test_an_unsigned_index_has_no_minus_one() -> None:
    theta = torch.arange(1.0, 301.0)
    assert gathered(theta, torch.tensor([255, 0], dtype=torch.uint8)).tolist() == [256, 1]


@pytest.mark.parametrize("wrong", [-2, -8, 7, 8, 100])
def test_an_index_outside_is_an_error_not_a_zero(wrong: int) -> None:
    with pytest.raises((IndexError, RuntimeError)):
        gathered(torch.ones(7), torch.tensor([0, wrong]))


def test_rows_are_gathered_whole() -> None:
    theta = torch.arange(6.0).reshape(3, 2)
    assert gathered(theta, torch.tensor([[2, -1]])).tolist() == [[[4, 5], [0, 0]]]
    assert gathered(theta, torch.tensor(1)).tolist() == [2, 3]
    assert gathered(theta, torch.empty(0, dtype=torch.int64)).shape == (0, 2)


def test_the_index_has_no_derivative() -> None:
    tensors = {("a",): torch.ones(3), ("i",): torch.tensor([0, 0, -1])}
    back = adjoint(GATHER, torch.tensor([1.0, 2.0, 4.0]), tensors)
    assert back[("a",)].tolist() == [3, 0, 0]
    assert back[("i",)].tolist() == [0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.complex64])
def test_an_index_holds_whole_numbers(dtype: torch.dtype) -> None:
    metas = {("a",): torch.empty(3, device="meta"), ("i",): torch.empty(2, dtype=dtype, device="meta")}
    with pytest.raises(ShapeError, match=f"an index holds whole numbers, this one holds {dtype}"):
        GATHER.infer(metas)
    assert Gather().bilinear


def test_a_single_number_has_no_entries() -> None:
    metas = {("a",): torch.empty((), device="meta"), ("i",): torch.empty(2, dtype=torch.int64, device="meta")}
    with pytest.raises(ShapeError, match="a single number cannot be indexed"):
        GATHER.infer(metas)


def test_an_index_without_values_is_refused() -> None:
    """Torch reads uninitialized memory there, without an error."""
    with pytest.raises(tied.DeviceError) as caught:
        tied.parse("theta[index]").value({("theta",): torch.ones(3), ("index",): torch.tensor([0], device="meta")})
    assert str(caught.value) == (
        "The index of a gather is on the meta device, which has no values.\n"
        "  found:    an index on meta, and entries on cpu\n"
        "  expected: both on one device\n"
        "  fix:      load or copy the index buffer too: it lies beside the Parameters in the state dict\n"
        "The model was not changed."
    )
