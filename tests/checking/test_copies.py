"""Copies: what is found is what comparing every pair finds, and the work is linear, whatever the tensors hold."""

import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tied.checking.copies import Copy, copies

GENERATOR = torch.Generator()


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR)


def like(base: Tensor, count: int, change: Callable[[Tensor], object]) -> list[Tensor]:
    made = [base.clone() for _ in range(count)]
    for tensor in made:
        change(tensor)
    return made


def swapped(tensor: Tensor) -> None:
    """Move a number from one place to another: the sums of rows, columns and all stay."""
    i, j, k, m = torch.randint(0, 8, (4,), generator=GENERATOR).tolist()
    step = float(torch.randint(1, 9, (), generator=GENERATOR))
    for row, column, sign in ((i, j, 1), (i, m, -1), (k, j, -1), (k, m, 1)):
        tensor[row, column] += sign * step


WORST: dict[str, Callable[[int], list[Tensor]]] = {
    "short-diagonals": lambda n: [normal(*shape) for _ in range(n // 2) for shape in ((4, 4), (4,), (16,))],
    "last-row": lambda n: like(normal(16, 8), n, lambda t: t[-1].normal_(generator=GENERATOR)),
    "last-number": lambda n: like(normal(12, 8), n, lambda t: t[-1, -1].normal_(generator=GENERATOR)),
    "equal-sums": lambda n: like(normal(8, 8).mul(64).round(), n, swapped),
    "permuted-rows": lambda n: [
        torch.ones(8, 9).index_copy(1, torch.arange(8), torch.eye(8))[torch.randperm(8, generator=GENERATOR)]
        + torch.arange(9)
        for _ in range(n)
    ],
    "equal-diagonals": lambda n: like(normal(8, 8), n, lambda t: t.copy_(normal(8, 8)).fill_diagonal_(1)),
    "zero-diagonals": lambda n: like(normal(9, 8), n, lambda t: t.copy_(normal(9, 8)).fill_diagonal_(0)),
    "whole-numbers": lambda n: [torch.randint(-3, 4, (8, 8), generator=GENERATOR).double() for _ in range(n)],
    "constants": lambda n: [torch.full(((8, 9), (72,))[i % 2], float(i % 5)) for i in range(n)],
    "copies": lambda n: like(normal(9, 8), n, lambda t: None),
    "transposes": lambda n: [w.t().clone() if i % 2 else w.clone() for w in [normal(8, 8)] for i in range(n)],
    "multiples": lambda n: [(i + 1) * w for w in [normal(8, 9)] for i in range(n)],
    "near-multiples": lambda n: like(normal(9, 8), n, lambda t: t.mul_(1 + 1e-7 * normal(9, 8))),
    "half-precision": lambda n: [normal(8, 8).bfloat16() for _ in range(n)],
    "rows": lambda n: [w[: 4 + i % 9].clone() for w in [normal(12, 8)] for i in range(n)],
    "nearly-rows": lambda n: [
        tensor[: 4 + i % 6]
        for i, tensor in enumerate(like(normal(9, 8), n, lambda t: t[3:].normal_(generator=GENERATOR)))
    ],
    "one-first-row": lambda n: [torch.cat([w] * 6 + [normal(1 + i % 2, 8)]) for w in [normal(1, 8)] for i in range(n)],
    "not-a-number": lambda n: like(normal(8, 9), n, lambda t: t[-1, -1:].fill_(torch.nan)),
}


def made(name: str, count: int) -> list[Tensor]:
    GENERATOR.manual_seed(7)
    return WORST[name](count)


# -- what is found ------------------------------------------------------------------------------------


def by_hand(tensors: list[Tensor]) -> Iterator[Copy]:
    """Compare every tensor with every one before it that is no copy itself."""
    leaders: list[int] = []
    for place, two in enumerate(tensors):
        for first in leaders:
            one = tensors[first]
            if one.shape == two.shape and torch.equal(one, two):
                yield Copy(first, place, "identity")
            elif one.t().shape == two.shape and torch.equal(one.t(), two):
                yield Copy(first, place, ".T")
            else:
                continue
            break
        else:
            leaders.append(place)


@pytest.mark.parametrize("name", [name for name in WORST if name not in ("multiples", "rows", "constants")])
def test_equal_tensors_are_found_among_those_that_are_hard_to_tell_apart(name):
    tensors = [tensor for tensor in made(name, 60) if tensor.numel() >= 16]
    tensors += [tensors[n].t().contiguous() if n % 2 else tensors[n].clone() for n in (3, 7, 20, 41, 58)]
    exact = [copy for copy in copies(tensors) if copy.factor == 1 and "[" not in copy.transform]
    assert exact == sorted(by_hand(tensors))


@pytest.mark.parametrize("name", ["last-row", "zero-diagonals", "equal-diagonals", "whole-numbers", "permuted-rows"])
def test_multiples_are_found_among_them(name):
    tensors = made(name, 60)
    known = {copy.other for copy in copies(tensors)}
    chosen = [place for place in (3, 20, 41) if place not in known]
    found = copies([*tensors, *(-4 * tensors[place] for place in chosen)])
    assert [copy for copy in found if copy.other >= 60] == [
        Copy(place, 60 + number, "identity", -4.0) for number, place in enumerate(chosen)
    ]
    assert chosen


def test_rows_are_found_among_many_that_begin_alike():
    tensors = made("one-first-row", 60)
    wholes = [torch.cat([normal(2, 8), tensor, normal(3, 8)]) for tensor in tensors[:40]]
    found = {copy.other: copy for copy in copies([*tensors, *wholes])}
    for place, tensor in enumerate(tensors):
        expected = Copy(60 + place, place, f"[2:{2 + len(tensor)}]") if place < 40 else None
        assert found.get(place) == expected


# -- how much work it is ------------------------------------------------------------------------------


class Reading(TorchDispatchMode):
    """Counts the numbers that torch takes in; a view takes none."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view:
            several = [tensor for arg in args for tensor in (arg if isinstance(arg, list | tuple) else [arg])]
            self.numbers += sum(tensor.numel() for tensor in several if isinstance(tensor, Tensor))
        return func(*args, **(kwargs or {}))


def work(tensors: list[Tensor]) -> tuple[int, int]:
    """Return how many numbers are read, and how many functions called, in Python and in C."""
    calls = 0

    def count(frame: object, event: str, arg: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        copies(tensors)
    finally:
        sys.setprofile(None)
    with Reading() as reading:
        copies(tensors)
    return reading.numbers, calls


@pytest.mark.parametrize("name", WORST)
def test_work_is_linear_in_the_number_of_tensors(name):
    """Where few agree by chance and many more of many, all are taken to agree: so much is the most."""
    few, many = made(name, 100), made(name, 1000)
    copies(few)  # what is made once
    (some, calls), (read, called) = work(few), work(many)
    held, more = (sum(tensor.numel() for tensor in tensors) for tensors in (few, many))
    assert read <= 11 * max(some, 40 * held)
    assert called <= 11 * max(calls, 60 * len(few))
    assert read <= 100 * more
