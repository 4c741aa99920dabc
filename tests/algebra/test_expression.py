"""Expressions as values: equality, copies, operators, what they read, where they live, and how large they may be."""

import json
import pickle
from copy import copy, deepcopy
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from tied import Expression, KindError, ParseError, ShapeError, Tie, cat, kron, ref, stack
from tied.algebra import parse
from tied.algebra.expression import MOST_NODES, Ref
from tied.algebra.transform import MOST_DEPTH

A, B, C = ref("a.w"), ref("b.w"), ref("c.w")


# Values


@pytest.mark.parametrize(
    ("object_form", "text"),
    [
        (A.T, "a.w.T"),
        (A.t(), "a.w.t()"),
        (A.mT, "a.w.mT"),
        (2 * A, "2 * a.w"),
        (A * 2.0, "2 * a.w"),
        (-A / 3, "-a.w / 3"),
        (A + B - C, "a.w + b.w - c.w"),
        (A @ B.T, "a.w @ b.w.T"),
        (A * B, "a.w * b.w"),
        (A * [1, -1], "a.w * [1, -1]"),
        ([1, -1] * A, "[1, -1] * a.w"),
        (A[1:, ..., None, 0], "a.w[1:, ..., None, 0]"),
        (A[B], "a.w[b.w]"),
        (cat([A, B], 1), "cat([a.w, b.w], 1)"),
        (stack([A, B]), "stack([a.w, b.w])"),
        (kron(A, B), "kron(a.w, b.w)"),
        (A.exp().softplus().square().sigmoid().reciprocal(), "a.w.exp().softplus().square().sigmoid().reciprocal()"),
        (A.detach(), "a.w.detach()"),
        (A.to(torch.float16), "a.w.to(float16)"),
        (A.to("cuda:1"), 'a.w.to("cuda:1")'),
        (A.to(torch.device("cpu")), 'a.w.to("cpu")'),
        (A.reshape(2, -1).view(6).flatten(), "a.w.reshape(2, -1).view(6).flatten()"),
        (A.unflatten(0, (2, 3)).squeeze(0).unsqueeze(1), "a.w.unflatten(0, (2, 3)).squeeze(0).unsqueeze(1)"),
        (
            A.expand(2, -1).repeat(2, 1).repeat_interleave(2, 0),
            "a.w.expand(2, -1).repeat(2, 1).repeat_interleave(2, 0)",
        ),
        (A.flip(0).roll(1).narrow(0, 1, 2), "a.w.flip(0).roll(1).narrow(0, 1, 2)"),
        (A.transpose(0, 1).permute(2, 0, 1), "a.w.transpose(0, 1).permute(2, 0, 1)"),
        (np.float64(2) * A, "2 * a.w"),
        (np.int64(3) * A * np.float32(0.5), "0.5 * (3 * a.w)"),
        (Fraction(1, 2) * A, "0.5 * a.w"),
    ],
    ids=str,
)
def test_objects_and_texts_are_two_forms_of_one_value(object_form: Expression, text: str) -> None:
    assert object_form == parse(text)
    assert hash(object_form) == hash(parse(text))
    assert str(object_form) == str(parse(text))


def test_different_expressions_differ() -> None:
    texts = ["a.w", "b.w", "a.w.T", "-a.w", "2 * a.w", "a.w / 2", "a.w * [2]", "a.w[0]", "a.w[:1]", "a.w[None]"]
    texts += ["a.w + b.w", "b.w + a.w", "a.w * b.w", "a.w[b.w]", "cat([a.w], 0)", "stack([a.w], 0)", "cat([a.w], 1)"]
    texts += ["a.w.to(float16)", "a.w.to(bfloat16)", 'a.w.to("cpu")', "a.w.exp()", "a.w.detach()", "a.w.flip(0)"]
    assert len({parse(text) for text in texts}) == len(texts)
    assert A != "a.w"
    assert A != ("a", "w")
    assert torch.ones(2) != A


def test_an_expression_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        A.address = ("b", "w")
    with pytest.raises(AttributeError):
        A.T.transform = None


def test_copies_are_equal_however_deep() -> None:
    chain = A
    for _ in range(MOST_NODES - 60):
        chain = chain.exp()
    for expression in [A, A.T, cat([A, -B], 1)[C] / 3, chain]:
        assert copy(expression) == expression
        assert deepcopy(expression) == expression
        assert pickle.loads(pickle.dumps(expression)) == expression
        assert parse(json.loads(json.dumps(str(expression)))) == expression


def test_a_tie_is_json() -> None:
    tie = Tie(("blocks", "my block", "T"), parse('2 * ["0"].T[i.index]'))
    data = json.loads(json.dumps(tie.to_json()))
    assert data == {"target": 'blocks["my block"]["T"]', "source": '2 * ["0"].T[i.index]'}
    assert Tie.from_json(data) == tie
    with pytest.raises(ParseError):
        Tie.from_json({"target": "a.w", "source": "__import__('os').system('true')"})


def test_it_shows_as_what_makes_it() -> None:
    assert repr(2 * A.T) == "parse('2 * a.w.T')"
    assert eval(repr(cat([A, B], 0))) == cat([A, B], 0)


def test_references() -> None:
    assert ref("layers[0].weight") == ref(("layers", "0", "weight")) == Ref(("layers", "0", "weight"))
    assert ref("a.T") == Ref(("a", "T"))
    assert str(ref(("a", "T")).T) == 'a["T"].T'


def test_sources_and_substitution() -> None:
    expression = cat([A, B.T, A[C]], 0)
    assert expression.sources() == (("a", "w"), ("b", "w"), ("c", "w"))
    assert expression.substitute({("a", "w"): B.T}) == cat([B.T, B.T, B.T[C]], 0)
    assert expression.substitute({}) == expression
    assert (A.T[1:]).substitute({("a", "w"): (2 * B).T}) == 2 * B[1:]  # simplified again
    assert [str(node) for node in (2 * A.T).nodes()] == ["2 * a.w.T", "a.w.T", "a.w"]


def test_compiled_expressions_read_when_called() -> None:
    store = {("a", "w"): torch.zeros(2)}
    read = (2 * A).compile(lambda address: lambda: store[address])
    store["a", "w"] = torch.ones(2)
    assert torch.equal(read(), torch.full((2,), 2.0))


def test_devices_meet_where_they_are_brought_together() -> None:
    cpu, first, second = torch.device("cpu"), torch.device("cuda:0"), torch.device("cuda:1")
    where = {("a", "w"): cpu, ("b", "w"): second}
    assert A.devices(where) == {cpu}
    assert (2 * A).T.devices(where) == {cpu}
    assert (A + B).devices(where) == {cpu, second}
    assert (A + B.to("cpu")).devices(where) == {cpu}
    assert A.to("cuda").devices(where) == {first}
    assert cat([A.to("cuda:1"), B], 0).devices(where) == {second}
    assert (A + B).to("cpu").devices(where) == {cpu}


# Operators refuse what is no expression


TENSOR = torch.ones(2, 2)


@pytest.mark.parametrize(
    "mix",
    {
        "e * tensor": lambda: A * TENSOR,
        "tensor * e": lambda: TENSOR * A,
        "e + tensor": lambda: A + TENSOR,
        "tensor + e": lambda: TENSOR + A,
        "e - tensor": lambda: A - TENSOR,
        "tensor - e": lambda: TENSOR - A,
        "e / tensor": lambda: A / TENSOR,
        "tensor / e": lambda: TENSOR / A,
        "e @ tensor": lambda: A @ TENSOR,
        "tensor @ e": lambda: TENSOR @ A,
        "parameter * e": lambda: nn.Parameter(TENSOR) * A,
        "e[tensor]": lambda: A[torch.tensor([0, 1])],
        "tensor[e]": lambda: TENSOR[A],
        "e + array": lambda: A + np.ones(2),
        "array * e": lambda: np.ones(2) * A,
        "cat of both": lambda: cat([A, TENSOR]),
        "cat of both, tensor first": lambda: cat([TENSOR, A]),
        "kron of both": lambda: kron(TENSOR, A),
        "cat of numbers": lambda: cat([5, A]),
        "e + number": lambda: A + 2,
        "number + e": lambda: 2 + A,
        "number - e": lambda: 2 - A,
        "number / e": lambda: 2 / A,
        "e @ number": lambda: A @ 2,
        "e * text": lambda: A * "b.w",
        "e / list": lambda: A / [1, 2],
        "e * complex": lambda: A * 2j,
        "sum of e": lambda: sum([A, B]),
    }.items(),
    ids=lambda item: item[0],
)
def test_what_is_no_expression_is_refused_by_kind(mix: tuple[str, object]) -> None:
    with pytest.raises(KindError) as caught:
        mix[1]()
    assert isinstance(caught.value, TypeError)
    assert "1." not in str(caught.value)  # no tensor is printed


def test_the_message_for_a_tensor_says_where_constants_belong() -> None:
    with pytest.raises(KindError) as caught:
        A * TENSOR
    assert str(caught.value) == (
        "This cannot stand here in an expression.\n"
        "  found:    Tensor\n"
        "  expected: an expression, such as m.encoder.weight.T\n"
        "  fix:      register constants as buffers of the model and use their address; "
        "numbers only multiply and divide\n"
        "The model was not changed."
    )


@pytest.mark.parametrize("number", [float("nan"), float("inf"), True, 10**400, np.float32("inf")], ids=str)
def test_constants_are_finite_numbers(number: object) -> None:
    with pytest.raises(ParseError, match="not a constant to multiply by"):
        A * number
    with pytest.raises(ParseError):
        A * [number]


def test_division() -> None:
    with pytest.raises(ParseError, match="Division by zero"):
        A / 0
    with pytest.raises(ParseError, match="Only numbers divide"):
        A / B


def test_an_expression_is_no_sequence() -> None:
    with pytest.raises(TypeError, match=r"'a\.w' is an expression; select from it with slices"):
        list(A)
    with pytest.raises(TypeError):
        len(A)
    with pytest.raises(TypeError):
        0 in A  # noqa: B015


@pytest.mark.parametrize("target", ["", "nowhere", "cuda:-1", "\ud800", "\x00", None, 1.5])
def test_moving_to_what_is_no_place(target: object) -> None:
    with pytest.raises(ParseError, match="neither a dtype nor a device"):
        A.to(target)


# Sizes


def test_an_expression_has_a_size_and_a_nesting() -> None:
    assert (A.size, A.nesting) == (1, 0)
    expression = kron(2 * (A + B), cat([A.flip(0), C], 1))
    assert expression.size == len(list(expression.nodes())) == 9
    assert str(expression) == "kron(2 * (a.w + b.w), cat([a.w.flip(0), c.w], 1))"
    assert expression.nesting == 4
    assert A.exp().flip(0).T.nesting == 1
    assert A.exp().flip(0).T[0].size == 5


@pytest.mark.parametrize(
    ("grow", "most"),
    {
        "a chain": (lambda e: e.exp(), MOST_NODES - 1),
        "a sum": (lambda e: e + A, (MOST_NODES - 1) // 2),
        "scales": (lambda e: 3 * e, MOST_DEPTH),
        "joins": (lambda e: cat([e], 0), MOST_DEPTH // 2 - 1),
        "products": (lambda e: kron(A, e), MOST_DEPTH - 1),
        "indices": (lambda e: A[e], MOST_DEPTH - 1),
        "sums to the right": (lambda e: A + e, MOST_DEPTH),
        "scales of chains": (lambda e: (3 * e).exp(), MOST_DEPTH - 1),
    }.values(),
    ids=["a chain", "a sum", "scales", "joins", "products", "indices", "sums to the right", "scales of chains"],
)
def test_what_can_be_built_can_be_read_back(grow: object, most: int) -> None:
    """The limits of building and of reading are the same, and the error comes when building."""
    expression: Expression = A
    for _ in range(most):
        expression = grow(expression)
    assert str(parse(str(expression))) == str(expression)
    with pytest.raises(ParseError, match="The expression is too large"):
        grow(expression)


def test_the_unfinished_expression_does_nothing() -> None:
    unfinished = Expression()
    for use in [
        lambda: list(unfinished.nodes()),
        unfinished.text,
        lambda: unfinished.compile(lambda a: lambda: TENSOR),
        lambda: unfinished.infer({}),
        lambda: unfinished.devices({}),
        lambda: unfinished.substitute({}),
    ]:
        with pytest.raises(TypeError, match="not a finished expression"):
            use()


def test_shapes_are_named_for_every_operand() -> None:
    metas = {("a", "w"): torch.empty(2, 3, device="meta"), ("b", "w"): torch.empty(4, 3, device="meta")}
    with pytest.raises(ShapeError) as caught:
        (2 * (A.T @ B)).infer(metas)
    assert caught.value.problem == "'a.w.T @ b.w' cannot be computed."
    assert caught.value.found == "a.w.T: (3, 2), b.w: (4, 3)"
    assert isinstance(caught.value, ValueError)
