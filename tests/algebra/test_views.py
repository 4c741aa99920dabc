"""Views: one form for the arguments, and merging that is proven equal to torch's methods one after the other."""

import numpy as np
import pytest
import torch
from generated_expressions import Step, chains, follow
from hypothesis import given, settings
from torch import Tensor

from tied import Expression, ParseError, ShapeError, ref
from tied.algebra import adjoint, counts, parse
from tied.algebra.projection import is_sparse
from tied.algebra.views import ROWS, Index, Span, View, index, view

W = ref("w")


def do(steps: list[Step]) -> Expression:
    expression: Expression = W
    for step in steps:
        expression = follow(expression, step)
    return expression


def torch_does(steps: list[Step], start: Tensor) -> Tensor:
    for step in steps:
        start = follow(start, step)
    return start


# Simplification


SIMPLER = {
    "w.T.T": "w",
    "w.mT.mT": "w",
    "w.t().T": "w",
    "w.T.T.T": "w.T",
    "w.transpose(0, 1).transpose(1, 0)": "w",
    "w.transpose(0, 2).transpose(0, 1)": "w.transpose(0, 2).transpose(0, 1)",
    "w.permute(1, 2, 0).permute(2, 0, 1)": "w",
    "w.permute(1, 2, 0).permute(1, 2, 0)": "w.permute(2, 0, 1)",
    "w.permute(0, -1, 1).permute(0, -1, 1)": "w",
    "w.permute(1, 0).permute(-1, -2)": "w",
    "w.permute(0, 1).permute(1, 0)": "w.permute(0, 1).T",
    "w.permute(0, 2, 1).permute(0, 1)": "w.permute(0, 2, 1).permute(0, 1)",
    "w.permute(0, 1).permute(0, 5)": "w.permute(0, 1).permute(0, 5)",
    "w.permute(0, 0, 1).permute(0, 1, 2)": "w.permute(0, 0, 1).permute(0, 1, 2)",
    "w.flip(0).flip(0)": "w",
    "w.flip(0, 1).flip(1, 0)": "w",
    "w.flip(0).flip(1)": "w.flip(0).flip(1)",
    "w.flip(0, 0).flip(0)": "w.flip(0, 0).flip(0)",
    "w.roll(2, 0).roll(3, 0)": "w.roll(5, 0)",
    "w.roll(2, 0).roll(-2, 0)": "w",
    "w.roll(2).roll(-3)": "w.roll(-1)",
    "w.roll(2, 0).roll(3, 1)": "w.roll(2, 0).roll(3, 1)",
    "w.roll(2).roll(3, 0)": "w.roll(2).roll(3, 0)",
    "w.roll((1, 2), (0, 1)).roll((1, 2), (0, 1))": "w.roll((1, 2), (0, 1)).roll((1, 2), (0, 1))",
    "w.narrow(0, 2, 5).narrow(0, 1, 3)": "w.narrow(0, 3, 3)",
    "w.narrow(0, 2, 5).narrow(0, 3, 3)": "w.narrow(0, 2, 5).narrow(0, 3, 3)",
    "w.narrow(0, -5, 5).narrow(0, 1, 3)": "w.narrow(0, -5, 5).narrow(0, 1, 3)",
    "w.narrow(0, 2, 5).narrow(1, 1, 3)": "w.narrow(0, 2, 5).narrow(1, 1, 3)",
    "w.reshape(6).reshape(2, 3)": "w.reshape(2, 3)",
    "w.flatten().view(2, 3)": "w.reshape(2, 3)",
    "w.unflatten(0, (2, 3)).reshape(-1)": "w.reshape(-1)",
    "w.squeeze().unsqueeze(0).reshape(4)": "w.reshape(4)",
    "w.T.reshape(6)": "w.T.reshape(6)",
    "w.reshape(2, 3).flatten()": "w.reshape(2, 3).flatten()",
    "w.unsqueeze(0).squeeze(0)": "w",
    "w.unsqueeze(0).squeeze()": "w.unsqueeze(0).squeeze()",
    "w.squeeze(0).unsqueeze(0)": "w.squeeze(0).unsqueeze(0)",
    "w[2:][3:]": "w[5:]",
    "w[2:9][3:5]": "w[5:7]",
    "w[2:9][3:50]": "w[5:9]",
    "w[2:4][3:]": "w[5:5]",
    "w[1::2][1::3]": "w[3::6]",
    "w[1:8:2][:2]": "w[1:5:2]",
    "w[:5][2]": "w[2]",
    "w[2:][3]": "w[5]",
    "w[2:4][2]": "w[2:4][2]",
    "w[1][2]": "w[1, 2]",
    "w[1][2:]": "w[1, 2:]",
    "w[1:, 2][0]": "w[1, 2]",
    "w[:, 1][2:]": "w[2:, 1]",
    "w[1, 2:][:, 3]": "w[1, 2:, 3]",
    "w[-1][0]": "w[-1][0]",
    "w[0][-1]": "w[0][-1]",
    "w[:-1][1:]": "w[:-1][1:]",
    "w[..., 0][1]": "w[..., 0][1]",
    "w[None][0]": "w[None][0]",
    "(2 * w).T": "2 * w.T",
    "(-w)[1:]": "-w[1:]",
    "(w / 3).flip(0).T": "w.flip(0).T / 3",
    "(2 * w.T).T": "2 * w",
    "(-(2 * w).T).T": "-2 * w",
    "(w * [1, 2]).T": "(w * [1, 2]).T",
    "w.exp().T": "w.exp().T",
    "w.flip(0).T.T.flip(0)": "w",
    "w.detach().detach()": "w.detach()",
    "w.to(float16).to(float16)": "w.to(float16)",
    "w.to(float16).to(float32)": "w.to(float16).to(float32)",
    'w.to("cpu").to("cpu")': 'w.to("cpu")',
    "-(0 * w)": "-(0 * w)",
    "2 * (3 * w)": "2 * (3 * w)",
    "-1 * w * -1": "w",
}


@pytest.mark.parametrize(("text", "simpler"), SIMPLER.items(), ids=SIMPLER)
def test_composition_simplifies(text: str, simpler: str) -> None:
    assert str(parse(text)) == simpler


LARGE = 2**61


@pytest.mark.parametrize(
    "expression",
    [
        W.roll(LARGE, 0).roll(LARGE, 0),
        W.narrow(0, LARGE, LARGE).narrow(0, LARGE - 1, 1),
        W[LARGE:][LARGE:],
        W[LARGE:][LARGE],
        W[::LARGE][::LARGE],
        W[:: 2**40][: 2**40],
    ],
    ids=str,
)
def test_merging_makes_no_number_that_cannot_be_read(expression: Expression) -> None:
    assert parse(str(expression)) == expression


def test_indices_of_more_axes_than_a_tensor_has_are_not_merged() -> None:
    """The time to merge a long chain would grow with its square."""
    chain: Expression = W
    for _ in range(100):
        chain = chain[0]
    assert chain.size == 3


@settings(max_examples=500, deadline=None)
@given(chains())
def test_a_simplified_chain_is_torch_one_step_after_the_other(chain: tuple[Tensor, list[Step]]) -> None:
    """Bit for bit; with the same shape rule, adjoint and text."""
    start, steps = chain
    expression, expected = do(steps), torch_does(steps, start)
    assert torch.equal(expression.value({("w",): start}), expected)
    assert expression.infer({("w",): start.to("meta")}).shape == expected.shape
    assert expression.size <= len(steps) + 1
    assert parse(str(expression)) == expression
    assert is_sparse(expression)


@settings(max_examples=300, deadline=None)
@given(chains())
def test_the_adjoint_of_a_chain_is_its_gradient(chain: tuple[Tensor, list[Step]]) -> None:
    start, steps = chain
    leaf = start.clone().requires_grad_()
    expected = torch_does(steps, leaf)
    cotangent = torch.randn_like(expected)
    expected.backward(cotangent)
    ours = adjoint(do(steps), cotangent, {("w",): start})[("w",)]
    torch.testing.assert_close(ours, leaf.grad, rtol=1e-12, atol=1e-12)


@settings(max_examples=150, deadline=None)
@given(chains())
def test_the_counts_of_a_chain_are_the_diagonal(chain: tuple[Tensor, list[Step]]) -> None:
    start, steps = chain
    basis = torch.eye(start.numel(), dtype=torch.float64)
    columns = [torch_does(steps, e.reshape(start.shape)).reshape(-1) for e in basis]
    normal = torch.stack(columns, 1).T @ torch.stack(columns, 1)
    ours = counts(do(steps), {("w",): start})[("w",)]
    torch.testing.assert_close(ours.reshape(-1), normal.diagonal(), rtol=1e-12, atol=1e-12)


# Arguments


def test_one_map_has_one_form() -> None:
    assert view("t") == view("T") == view("permute", 1, 0) == view("permute", (-1, 0))
    assert view("view", 2, 3) == view("reshape", [2, 3]) == view("reshape", shape=torch.Size([2, 3]))
    assert view("mT") == view("transpose", -1, -2) == view("transpose", -2, -1)
    assert view("flatten") == view("flatten", 0) == view("flatten", 0, -1) == view("flatten", end_dim=-1)
    assert view("flip", dims=(0,)) == view("flip", 0) == View("flip", (0,))
    assert view("roll", 1) != view("roll", 1, 0)
    assert hash(view("flip", [0, 1])) == hash(view("flip", 0, 1))


def test_numpy_integers_are_whole_numbers() -> None:
    assert W[np.int64(1)] == W[1]
    assert W[np.int32(1) : np.int64(3)] == W[1:3]
    assert W.narrow(np.int64(0), 1, np.uint8(2)) == W.narrow(0, 1, 2)
    assert str(W.flip(np.int64(1))) == "w.flip(1)"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("T", (0,)),
        ("transpose", (0,)),
        ("transpose", (0, True)),
        ("transpose", ((0, 1), 1)),
        ("permute", ("0", 1)),
        ("permute", ((0, 1), (1, 0))),
        ("reshape", (2.0,)),
        ("reshape", (2**62,)),
        ("reshape", (10**400,)),
        ("reshape", (None,)),
        ("reshape", (torch.tensor(2),)),
        ("reshape", (W,)),
        ("unflatten", (0, 2)),
        ("unflatten", (0, ((1, 2), 3))),
        ("squeeze", (0, 1)),
        ("expand", ([[1]],)),
        ("repeat_interleave", (2,)),
        ("repeat_interleave", ((1, 2), 0)),
        ("roll", ()),
        ("narrow", (0, 1)),
    ],
)
def test_arguments_that_torch_does_not_take(name: str, arguments: tuple[object, ...]) -> None:
    with pytest.raises(ParseError) as caught:
        view(name, *arguments)
    assert caught.value.problem == f".{name} was called with arguments that it does not take."
    assert caught.value.found.startswith(f".{name}(")


def test_keywords_are_torchs_own() -> None:
    assert W.flip(dims=[0]) == torch.flip(W, dims=(0,)) == W.flip(0)
    assert W.permute(dims=(2, 0, 1)) == torch.permute(W, dims=(2, 0, 1))
    assert W.expand(size=(2, 3)) == W.expand(2, 3)
    assert W.repeat(repeats=(2, 3)) == W.repeat(2, 3)
    with pytest.raises(ParseError, match=r"found:    \.flip\(dim=0\)"):
        W.flip(dim=0)
    with pytest.raises(ParseError):
        W.flip(0, dims=(1,))


# Indexing


def test_an_index_has_one_form() -> None:
    assert W[0:5] == W[:5] == W[None:5:1] == W[(slice(5),)]
    assert W[()] == W[...]
    assert W[1,] == W[1]
    assert index((0, slice(1, 3))) == Index((0, Span(1, 3)))
    assert Index((0, Span(1, None, 2))).key == (0, slice(1, None, 2))
    assert str(W[0, 1:, ..., None, :3:2]) == "w[0, 1:, ..., None, :3:2]"


@pytest.mark.parametrize(
    "key", [1.5, "0", True, [0, 1], slice(1.5), slice(None, None, -1), slice(None, None, 0), 2**62]
)
def test_what_is_no_index(key: object) -> None:
    with pytest.raises(ParseError, match="This cannot stand between"):
        W[key]


def test_at_most_one_ellipsis() -> None:
    with pytest.raises(ParseError, match="at most one"):
        W[..., 0, ...]


# Shapes


def test_transposing_a_vector_is_refused_and_says_what_would_fit() -> None:
    with pytest.raises(ShapeError) as caught:
        parse("2 * w.T").infer({("w",): torch.empty(3, device="meta")})
    assert str(caught.value) == (
        "'w.T' cannot be computed.\n"
        "  found:    w: (3)\n"
        "  expected: .T expects a matrix, got 1 dimensions; see .mT and .permute\n"
        "  fix:      use a transform that fits these shapes\n"
        "The model was not changed."
    )


def test_every_row_knows_its_adjoint_on_an_empty_tensor() -> None:
    empty = torch.empty(0, 3, dtype=torch.float64)
    for text in [
        "w.T",
        "w.flip(0)",
        "w.repeat(2, 1)",
        "w.repeat_interleave(2, 0)",
        "w.expand(2, 0, 3)",
        "w[:0]",
        "w.roll(1)",
    ]:
        expression = parse(text)
        back = adjoint(expression, torch.ones_like(expression.value({("w",): empty})), {("w",): empty})
        assert back[("w",)].shape == empty.shape
    assert {parse(text).transform.name for text in ["w.T", "w.flip(0)"]} < set(ROWS)
