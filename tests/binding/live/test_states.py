"""The table of a live slot's states: what it holds, what its source's slot holds, who wrote it, and what it is."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from tied.binding.live.states import Verdict, is_same, judge


class DTensor(Parameter):
    """What a sharded tensor is known by."""


def real(value: float = 1.0) -> Parameter:
    return Parameter(torch.full((2, 3), float(value)))


def meta() -> Parameter:
    return Parameter(torch.empty(2, 3, device="meta"))


def plain(value: float = 1.0) -> Tensor:
    return torch.full((2, 3), float(value))


def sharded() -> Parameter:
    return DTensor(torch.ones(2, 3))


ONE = real()


@dataclass(frozen=True)
class Row:
    state: str
    held: Tensor
    source: Tensor | None
    own: Verdict  # where the tie put `held` there
    foreign: Verdict  # where somebody else did

    def __str__(self) -> str:
        return self.state


V = Verdict
TABLE = [
    Row("one tensor", ONE, ONE, V.HOLDS, V.HOLDS),
    Row("the source is computed", real(), None, V.LATE, V.LATE),
    Row("the source is sharded", real(), sharded(), V.LATE, V.LATE),
    Row("the target is sharded", sharded(), real(), V.LATE, V.LATE),
    Row("the source was replaced, by equal values", real(), real(), V.FOLLOWS, V.FOLLOWS),
    Row("two values", real(), real(2), V.FOLLOWS, V.SPLIT),
    Row("two shapes", real(), Parameter(torch.ones(3, 2)), V.FOLLOWS, V.SPLIT),
    Row("two dtypes", real(), Parameter(torch.ones(2, 3, dtype=torch.float64)), V.FOLLOWS, V.SPLIT),
    Row("NaN in both", real(float("nan")), real(float("nan")), V.FOLLOWS, V.FOLLOWS),
    Row("one memory", ONE, Parameter(ONE.detach()), V.FOLLOWS, V.FOLLOWS),
    Row("the source is swapped for a while", real(), plain(2), V.FOLLOWS, V.FOLLOWS),
    Row("the target is swapped for a while", plain(2), real(), V.FOLLOWS, V.OWN),
    Row("both are swapped for a while, for two values", plain(2), plain(), V.FOLLOWS, V.SPLIT),
    Row("both are swapped for a while, for equal values", plain(), plain(), V.FOLLOWS, V.FOLLOWS),
    Row("the source is offloaded", real(), meta(), V.OWN, V.OWN),
    Row("the target is offloaded", meta(), real(), V.FOLLOWS, V.PEEKS),
    Row("both are offloaded, by two tensors", meta(), meta(), V.FOLLOWS, V.OWN),
]


@pytest.mark.parametrize("row", TABLE, ids=str)
def test_the_table(row: Row) -> None:
    versions = [tensor._version for tensor in (row.held, row.source) if tensor is not None]
    assert judge(row.held, row.source, is_foreign=False) is row.own
    assert judge(row.held, row.source, is_foreign=True) is row.foreign
    assert [tensor._version for tensor in (row.held, row.source) if tensor is not None] == versions


def test_every_verdict_is_in_the_table() -> None:
    assert {row.own for row in TABLE} | {row.foreign for row in TABLE} == set(Verdict)


def test_what_the_tie_put_there_is_never_a_conflict() -> None:
    assert Verdict.SPLIT not in {row.own for row in TABLE}


def test_equal_values_are_compared_whatever_the_strides() -> None:
    square = torch.arange(9.0).reshape(3, 3)
    assert is_same(square, square.clone().t().contiguous().t())
    assert not is_same(square, square.t())
    assert not is_same(square, square.to("meta"))
    assert is_same(torch.tensor([float("nan"), 1]), torch.tensor([float("nan"), 1]))
    assert not is_same(torch.tensor([float("nan"), 1]), torch.tensor([1, float("nan")]))
