"""Projection on cases that people know: means, symmetric parts, pooled heads, index maps; and exact inverses."""

import pytest
import torch

from tied import InverseError
from tied.algebra import adjoint, counts, invert, parse, project
from tied.algebra.projection import agree, is_sparse

W, V, INDEX, SIGNS = ("w",), ("v",), ("index",), ("signs",)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def random(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64).to(dtype)


# The nearest source


def test_two_copies_give_their_mean() -> None:
    first, second = random(3, 2), random(3, 2)
    found = project([(parse("w"), first), (parse("w"), second)], {W: random(3, 2)})
    close(found[W], (first + second) / 2)


def test_encoder_and_decoder_give_the_mean_of_one_and_the_other_transposed() -> None:
    encoder, decoder = random(3, 2), random(2, 3)
    found = project([(parse("w"), encoder), (parse("w.T"), decoder)], {W: encoder})
    close(found[W], (encoder + decoder.t()) / 2)


def test_a_matrix_and_its_transpose_give_the_symmetric_part() -> None:
    square = random(3, 3)
    close(project([(parse("w"), square), (parse("w.T"), square)], {W: square})[W], (square + square.t()) / 2)


def test_a_group_of_symmetries_gives_the_average_over_its_orbit() -> None:
    """Four rotations by a quarter turn: the Reynolds operator."""
    turns = ["w", "w.T.flip(0)", "w.flip(0, 1)", "w.T.flip(1)"]
    square = random(4, 4)
    found = project([(parse(turn), square) for turn in turns], {W: square})[W]
    close(found, sum(torch.rot90(square, k) for k in range(4)) / 4)
    close(torch.rot90(found), found)


def test_heads_that_share_keys_are_pooled() -> None:
    """Key heads of a group: the mean of the group (Ainslie et al. 2023)."""
    heads = random(8, 2, 3)
    uses = [(parse(f"w[{head // 4}]"), heads[head]) for head in range(8)]
    found = project(uses, {W: random(2, 2, 3)})[W]
    close(found, heads.reshape(2, 4, 2, 3).mean(1))
    whole = project([(parse("w.repeat_interleave(4, 0)"), heads)], {W: random(2, 2, 3)})[W]
    close(whole, found)


def test_scaled_uses_are_weighted() -> None:
    """min (a - w)^2 + (b - 3 w)^2  gives  w = (a + 3 b) / 10."""
    first, second = random(4), random(4)
    found = project([(parse("w"), first), (parse("3 * w"), second)], {W: random(4)})[W]
    close(found, (first + 3 * second) / 10)


def test_an_index_map_gives_the_mean_of_each_bucket() -> None:
    index = torch.tensor([[0, 1, 1], [-1, 0, 0]])
    value, present = random(2, 3), random(4)
    found = project([(parse("w[index]"), value)], {W: present, INDEX: index}, {INDEX})
    assert set(found) == {W}
    close(found[W][0], (value[0, 0] + value[1, 1] + value[1, 2]) / 3)
    close(found[W][1], (value[0, 1] + value[0, 2]) / 2)
    assert torch.equal(found[W][2:], present[2:])  # nobody reads them


def test_signs_are_undone() -> None:
    index, signs = torch.tensor([0, 0, 1, -1]), torch.tensor([1.0, -1.0, 2.0, 5.0]).double()
    value = random(4)
    tensors = {W: random(2), INDEX: index, SIGNS: signs}
    found = project([(parse("w[index] * signs"), value)], tensors, {INDEX, SIGNS})[W]
    close(found, torch.stack([(value[0] - value[1]) / 2, value[2] / 2]))


def test_several_sources_and_several_uses_are_one_least_squares_problem() -> None:
    """Against lstsq on the stacked matrix of both sources."""
    uses = ["cat([w, -v], 0)", "w.flip(0)", "2 * v[1:]", "w[index]"]
    tensors = {W: random(3), V: random(2), INDEX: torch.tensor([2, -1, 2, 0])}
    values = [random(*parse(use).value(tensors).shape) for use in uses]

    def all_uses(w: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return torch.cat([w, -v, w[[2, 1, 0]], 2 * v[1:], w[2:], w.new_zeros(1), w[2:], w[:1]])

    matrix = torch.stack([all_uses(e[:3], e[3:]) for e in torch.eye(5, dtype=torch.float64)], 1)
    expected = torch.linalg.lstsq(matrix, torch.cat(values)[:, None]).solution[:, 0]
    found = project([(parse(use), value) for use, value in zip(uses, values, strict=True)], tensors, {INDEX})
    close(torch.cat([found[W], found[V]]), expected)


@pytest.mark.parametrize("copies", [3, 7, 64, 1000])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_equal_copies_give_themselves_bit_for_bit(copies: int, dtype: torch.dtype) -> None:
    """A mean that rounds would make every file with shared heads unreadable."""
    source, present = random(20, dtype=dtype), torch.zeros(20, dtype=dtype)
    index = torch.arange(20).repeat(copies)
    for text, extra in [(f"w.expand({copies}, 20)", {}), ("w[index]", {INDEX: index}), (f"w.repeat({copies})", {})]:
        value = parse(text).value({W: source, **extra})
        found = invert(parse(text), value, {W: present, **extra}, set(extra))[W]
        assert torch.equal(found, source)
        assert found.dtype == dtype


def test_infinite_and_missing_values_are_kept() -> None:
    source = torch.tensor([float("inf"), -float("inf"), float("nan"), 1.0])
    for text in ["w", "w.flip(0)", "w.expand(3, 4)"]:
        found = invert(parse(text), parse(text).value({W: source}), {W: torch.zeros(4)})[W]
        torch.testing.assert_close(found, source, rtol=0, atol=0, equal_nan=True)


def test_the_source_keeps_its_own_dtype() -> None:
    found = project([(parse("w.to(float16)"), torch.ones(3, dtype=torch.float16))], {W: torch.zeros(3)})[W]
    assert (found.dtype, found.tolist()) == (torch.float32, [1, 1, 1])
    mixed = {W: torch.zeros(2), V: torch.zeros(2, dtype=torch.float64)}
    expression = parse("cat([w, v], 0)")
    found = project([(expression, torch.ones(4, dtype=torch.float64))], mixed)
    assert [tensor.dtype for tensor in found.values()] == [torch.float32, torch.float64]
    back = adjoint(expression, torch.ones(4, dtype=torch.float64), mixed)
    assert [tensor.dtype for tensor in back.values()] == [torch.float32, torch.float64]


def test_what_has_no_closed_form_is_named() -> None:
    with pytest.raises(InverseError) as caught:
        project([(parse("w + v"), torch.ones(2))], {W: torch.ones(2), V: torch.ones(2)})
    assert str(caught.value) == (
        "The nearest source of 'w + v' has no closed form.\n"
        "  found:    a sum, a product or a bend of parameters\n"
        "  expected: a transform that moves or scales entries\n"
        '  fix:      keep="source"; or, where a target was written to: write to its sources, or tie after '
        "initialization\n"
        "The model was not changed."
    )


# Which maps are sparse


@pytest.mark.parametrize(
    ("text", "fixed", "answer"),
    [
        ("w", (), True),
        ("w[index]", {INDEX}, True),
        ("w[index]", (), False),
        ("w[index][signs]", {INDEX, SIGNS}, True),
        ("w * signs", {SIGNS}, True),
        ("w * signs", (), False),
        ("w * signs.exp()", {SIGNS}, True),
        ("w * w", (), False),
        ("cat([w, v], 0)", (), True),
        ("cat([w, v.exp()], 0)", (), False),
        ("w + v", (), False),
        ("w + signs", {SIGNS}, False),
        ("w.detach()", (), False),
        ("kron(w, signs)", {SIGNS}, False),
    ],
)
def test_sparse_maps(text: str, fixed: set, answer: bool) -> None:
    assert is_sparse(parse(text), fixed) is answer


def test_counts_are_how_often_an_entry_is_used() -> None:
    tensors = {W: random(3), INDEX: torch.tensor([0, 0, 2, -1])}
    assert counts(parse("w[index]"), tensors, {INDEX})[W].tolist() == [2, 0, 1]
    assert counts(parse("-w.expand(5, 3)"), {W: random(3)})[W].tolist() == [5, 5, 5]
    assert counts(parse("cat([w, 2 * w], 0)"), {W: random(3)})[W].tolist() == [5, 5, 5]


# The exact inverse


def test_parts_of_one_source_may_be_read_in_different_ways() -> None:
    expression, present, other = parse("cat([w[:2].exp(), w[2:]], 0)"), random(4), random(4)
    found = invert(expression, expression.value({W: other}), {W: present})[W]
    close(found, other)


def test_a_bend_and_the_source_itself_may_agree() -> None:
    for text in ["cat([w.exp(), w], 0)", "cat([w, w.exp()], 0)"]:
        other = random(4)
        found = invert(parse(text), parse(text).value({W: other}), {W: random(4)})[W]
        close(found, other)


def test_unread_entries_of_a_bend_are_not_touched() -> None:
    """Even where the bend has rounded to the edge of its range: exp(-800) is 0."""
    present = torch.tensor([1.0, -800.0, 0.3], dtype=torch.float64)
    found = invert(parse("w.exp()[:1]"), torch.tensor([2.0], dtype=torch.float64), {W: present})[W]
    assert torch.equal(found[1:], present[1:])
    assert found[0] == torch.tensor(2.0).double().log()


def test_a_value_that_no_source_gives() -> None:
    value = torch.tensor([[1.0, 2.0], [1.0, 2.5]])
    with pytest.raises(InverseError) as caught:
        invert(parse("w.expand(2, 2)"), value, {W: torch.zeros(2)})
    assert str(caught.value) == (
        "No value of w gives this target.\n"
        "  found:    the nearest misses it by 0.25 (largest entry)\n"
        "  expected: a value of the form w.expand(2, 2)\n"
        '  fix:      take the nearest one with keep="mean", or untie the target first\n'
        "The model was not changed."
    )


def test_a_structural_zero_must_be_zero() -> None:
    tensors = {W: torch.zeros(2), INDEX: torch.tensor([0, -1, 1])}
    found = invert(parse("w[index]"), torch.tensor([1.0, 0.0, 3.0]), tensors, {INDEX})
    assert found[W].tolist() == [1, 3]
    with pytest.raises(InverseError):
        invert(parse("w[index]"), torch.tensor([1.0, 1e-30, 3.0]), tensors, {INDEX})


def test_parts_that_disagree_are_refused() -> None:
    for text in ["cat([w, w], 0)", "cat([w.exp(), w], 0)", "cat([w.exp(), w.square()], 0)"]:
        with pytest.raises(InverseError):
            invert(parse(text), torch.tensor([1.0, 2.0, 3.0, 4.0]), {W: torch.ones(2)})


# Agreement


@pytest.mark.parametrize(
    ("text", "gap", "answer"),
    [("w", 0, True), ("w", 1e-16, True), ("w", 1e-15, False), ("3 * w", 1e-15, True), ("w.exp()", 1e-12, False)],
)
def test_moves_agree_bit_for_bit_and_arithmetic_up_to_rounding(text: str, gap: float, answer: bool) -> None:
    first = torch.ones(2, dtype=torch.float64)
    assert agree(first, first + gap, parse(text)) is answer


def test_agreement_of_odd_values() -> None:
    nan = torch.tensor([float("nan"), 1.0])
    assert agree(nan, nan.clone(), parse("w"))
    assert not agree(nan, torch.tensor([1.0, 1.0]), parse("w"))
    assert not agree(torch.ones(2), torch.ones(3), parse("w"))
    assert not agree(torch.ones(2), torch.ones(1, 2), parse("w"))
    assert agree(torch.tensor([1, 2]), torch.tensor([1, 2]), parse("w"))
    assert not agree(torch.tensor([1, 2]), torch.tensor([1, 3]), parse("2 * w"))
    assert agree(torch.empty(0), torch.empty(0), parse("w"))
