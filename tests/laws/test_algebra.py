"""The laws of the language, each once, over every transform.

The oracle of every law is plain torch: a hand-written function, autograd, or the matrix of the map built
column by column. Nothing of `tied` checks itself.
"""

import json
import pickle
from copy import deepcopy

import pytest
import torch
from corpus_of_transforms import REFUSED, STRICTER, SUBJECTS, Address, Shape, Subject
from torch import Tensor

from tied import InverseError, ShapeError, Tie
from tied.algebra import Expression, adjoint, counts, invert, parse, project
from tied.algebra.expression import Apply
from tied.algebra.parser import FUNCTIONS
from tied.algebra.pointwise import ROWS as BENDS
from tied.algebra.projection import is_sparse
from tied.algebra.transform import METHODS, Transform
from tied.algebra.views import ROWS as VIEWS, SAME, View

EXACT = {"rtol": 1e-12, "atol": 1e-13}

every = pytest.mark.parametrize("subject", SUBJECTS, ids=str)
sparse = pytest.mark.parametrize("subject", [s for s in SUBJECTS if s.sparse], ids=str)
linear = pytest.mark.parametrize("subject", [s for s in SUBJECTS if s.linear], ids=str)
unrounded = pytest.mark.parametrize("subject", [s for s in SUBJECTS if s.sparse and not s.rounding], ids=str)
invertible = pytest.mark.parametrize("subject", [s for s in SUBJECTS if s.invertible], ids=str)


def tolerance(subject: Subject) -> dict[str, float]:
    return {"rtol": 4 * subject.rounding, "atol": 1e-9} if subject.rounding else EXACT


def free(subject: Subject, tensors: dict[Address, Tensor]) -> dict[Address, Tensor]:
    """The sources that are no buffers."""
    return {address: tensor for address, tensor in tensors.items() if address not in subject.fixed}


def flat(tensors: dict[Address, Tensor]) -> Tensor:
    """All entries of all sources in one vector."""
    return torch.cat([tensor.reshape(-1).double() for tensor in tensors.values()])


def unflat(subject: Subject, vector: Tensor) -> dict[Address, Tensor]:
    """The sources whose entries stand in one vector, and the buffers."""
    tensors = subject.tensors()
    sources = free(subject, tensors)
    pieces = vector.split([tensor.numel() for tensor in sources.values()])
    shaped = {a: p.reshape(t.shape).to(t.dtype) for (a, t), p in zip(sources.items(), pieces, strict=True)}
    return {**tensors, **shaped}


def matrix(subject: Subject) -> Tensor:
    """The matrix of a linear subject, built column by column from basis vectors by the oracle."""
    size = flat(free(subject, subject.tensors())).numel()
    rows = subject.expected(subject.tensors()).numel()
    columns = [subject.expected(unflat(subject, e)).reshape(-1).double() for e in torch.eye(size).double()]
    return torch.stack(columns, 1) if columns else torch.zeros(rows, 0, dtype=torch.float64)


def reads(subject: Subject) -> Tensor:
    """Which entries of the sources the value depends on, by autograd through the oracle."""
    sources = flat(free(subject, subject.tensors()))
    if not subject.expected(subject.tensors()).numel():
        return torch.zeros(len(sources), dtype=torch.bool)
    jacobian = torch.autograd.functional.jacobian(
        lambda vector: subject.expected(unflat(subject, vector)).reshape(-1).double(), sources
    )
    return jacobian.ne(0).any(0)


def transforms(expression: Expression) -> list[Transform]:
    return [node.transform for node in expression.nodes() if isinstance(node, Apply)]


# Values and shapes


@every
def test_forward_is_what_torch_computes(subject: Subject) -> None:
    tensors = subject.tensors()
    value, expected = parse(subject.text).value(tensors), subject.expected(tensors)
    assert value.shape == expected.shape
    assert value.dtype == expected.dtype
    assert torch.equal(value, expected)


@every
def test_shape_rule_agrees_with_reality(subject: Subject) -> None:
    tensors = subject.tensors()
    shape = parse(subject.text).infer({address: tensor.to("meta") for address, tensor in tensors.items()})
    real = subject.expected(tensors)
    assert shape.device.type == "meta"
    assert (shape.shape, shape.dtype) == (real.shape, real.dtype)


@pytest.mark.parametrize(("text", "shapes"), [*REFUSED, *STRICTER], ids=str)
def test_wrong_shapes_are_refused_before_anything_is_computed(text: str, shapes: dict[str, Shape]) -> None:
    metas = {tuple(name.split(".")): torch.empty(shape, device="meta") for name, shape in shapes.items()}
    with pytest.raises(ShapeError, match="cannot be computed") as caught:
        parse(text).infer(metas)
    assert any(f"({', '.join(map(str, shape))})" in caught.value.found for shape in shapes.values())


@pytest.mark.parametrize(("text", "shapes"), REFUSED, ids=str)
def test_what_is_refused_torch_cannot_compute(text: str, shapes: dict[str, Shape]) -> None:
    tensors = {tuple(name.split(".")): torch.ones(shape) for name, shape in shapes.items()}
    with pytest.raises((RuntimeError, IndexError, TypeError, ValueError)):
        parse(text).value(tensors)


@every
def test_exact_transforms_only_move_entries(subject: Subject) -> None:
    expression, tensors = parse(subject.text), subject.tensors()
    if all(transform.exact for transform in transforms(expression)):
        entries = {0.0, *flat(tensors).tolist()}
        assert set(expression.value(tensors).reshape(-1).tolist()) <= entries


@every
def test_what_is_said_to_alias_shares_memory(subject: Subject) -> None:
    expression, tensors = parse(subject.text), subject.tensors()
    if all(transform.aliases for transform in transforms(expression)):
        (source,) = tensors.values()
        assert expression.value(tensors).untyped_storage().data_ptr() == source.untyped_storage().data_ptr()


# The adjoint and the use counts


@every
def test_adjoint_is_the_gradient(subject: Subject) -> None:
    tensors = subject.tensors()
    for tensor in free(subject, tensors).values():
        tensor.requires_grad_()
    value = subject.expected(tensors)
    cotangent = torch.randn_like(value, requires_grad=False)
    ours = adjoint(parse(subject.text), cotangent, {a: t.detach() for a, t in tensors.items()})
    if value.requires_grad:
        value.backward(cotangent)
    for address, tensor in free(subject, tensors).items():
        expected = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
        assert ours[address].dtype == expected.dtype
        torch.testing.assert_close(ours[address], expected, **EXACT)


@linear
def test_adjoint_is_the_transposed_map(subject: Subject) -> None:
    """<A x, y> == <x, A* y>."""
    tensors = subject.tensors()
    expression = parse(subject.text)
    value = expression.value(tensors)
    other = torch.randn_like(value)
    back = free(subject, adjoint(expression, other, tensors))
    here = sum(
        torch.dot(back[a].double().reshape(-1), t.double().reshape(-1)) for a, t in free(subject, tensors).items()
    )
    there = torch.dot(value.double().reshape(-1), other.double().reshape(-1))
    torch.testing.assert_close(here, there, rtol=4 * subject.rounding or 1e-12, atol=10 * subject.rounding or 1e-12)


@linear
def test_adjoint_is_the_transposed_matrix(subject: Subject) -> None:
    tensors = subject.tensors()
    expression, whole = parse(subject.text), matrix(subject)
    shape, dtype = subject.expected(tensors).shape, subject.expected(tensors).dtype
    for row, e in zip(whole, torch.eye(len(whole), dtype=dtype), strict=True):
        ours = free(subject, adjoint(expression, e.reshape(shape), tensors))
        torch.testing.assert_close(flat({a: ours[a] for a in free(subject, tensors)}), row, **EXACT)


@sparse
def test_counts_are_the_diagonal_of_the_normal_matrix(subject: Subject) -> None:
    tensors, whole = subject.tensors(), matrix(subject)
    normal = whole.T @ whole
    assert torch.equal(normal, torch.diag(normal.diagonal()))
    ours = counts(parse(subject.text), tensors, subject.fixed)
    assert set(ours) == set(free(subject, tensors))
    torch.testing.assert_close(flat({a: ours[a] for a in free(subject, tensors)}), normal.diagonal(), **EXACT)


@every
def test_sparse_is_what_the_matrix_says(subject: Subject) -> None:
    assert is_sparse(parse(subject.text), subject.fixed) == subject.sparse
    if subject.sparse:
        assert matrix(subject).ne(0).sum(1).le(1).all()


# Inverses and projection


@invertible
def test_the_inverse_gives_the_value_back(subject: Subject) -> None:
    """forward(invert(y)) == y for every y of the image; what nobody reads keeps its present value."""
    expression, present = parse(subject.text), subject.tensors()
    value = subject.expected({**subject.tensors(seed=1), **{a: present[a] for a in subject.fixed}})
    found = invert(expression, value, present, subject.fixed)
    again = subject.expected({**present, **found})
    if all(transform.exact for transform in transforms(expression)):
        assert torch.equal(again, value)
    else:
        torch.testing.assert_close(again, value, **tolerance(subject))
    assert set(found) == set(free(subject, present))
    before = flat({a: present[a] for a in found})
    if "detach" not in subject.text:  # autograd sees no reading there
        unread = ~reads(subject)
        assert torch.equal(flat(found)[unread], before[unread])


@invertible
def test_the_inverse_of_the_present_value_changes_nothing(subject: Subject) -> None:
    expression, present = parse(subject.text), subject.tensors()
    found = invert(expression, subject.expected(present), present, subject.fixed)
    before = flat({a: present[a] for a in found})
    if all(transform.exact for transform in transforms(expression)):
        assert torch.equal(flat(found), before)
    else:
        torch.testing.assert_close(flat(found), before, **tolerance(subject))


@sparse
def test_values_outside_the_image_are_refused(subject: Subject) -> None:
    whole, present = matrix(subject), subject.tensors()
    if torch.linalg.matrix_rank(whole) == len(whole):
        return
    value = torch.randn_like(subject.expected(present))
    with pytest.raises(InverseError) as caught:
        invert(parse(subject.text), value, present, subject.fixed)
    assert subject.text in str(caught.value)


@pytest.mark.parametrize("subject", [s for s in SUBJECTS if not s.invertible], ids=str)
def test_sums_and_products_have_no_inverse(subject: Subject) -> None:
    present = subject.tensors()
    with pytest.raises(InverseError, match="has no closed form"):
        invert(parse(subject.text), subject.expected(present), present, subject.fixed)


@pytest.mark.parametrize("subject", [s for s in SUBJECTS if not s.sparse], ids=str)
def test_what_is_not_sparse_has_no_projection(subject: Subject) -> None:
    present = subject.tensors()
    with pytest.raises(InverseError, match="has no closed form"):
        project([(parse(subject.text), subject.expected(present))], present, subject.fixed)


@unrounded
def test_projection_is_least_squares(subject: Subject) -> None:
    """Two uses and the source itself: the minimum that lstsq finds on the explicit matrix."""
    expression, present, whole = parse(subject.text), subject.tensors(), matrix(subject)
    values = [torch.randn_like(subject.expected(present)) for _ in range(2)]
    found = project([(expression, value) for value in values], present, subject.fixed)
    stacked = torch.cat([whole, whole])
    start = flat(free(subject, present))
    residual = torch.cat([value.reshape(-1) for value in values]) - stacked @ start
    nearest = start + torch.linalg.pinv(stacked) @ residual if stacked.numel() else start
    torch.testing.assert_close(flat({a: found[a] for a in free(subject, present)}), nearest, rtol=1e-10, atol=1e-10)


@sparse
def test_projection_is_idempotent(subject: Subject) -> None:
    expression, present = parse(subject.text), subject.tensors()
    value = torch.randn_like(subject.expected(present))
    once = project([(expression, value)], present, subject.fixed)
    again = project([(expression, expression.value({**present, **once}))], {**present, **once}, subject.fixed)
    torch.testing.assert_close(flat(again), flat(once), **tolerance(subject))


@unrounded
def test_projection_follows_pythagoras(subject: Subject) -> None:
    """|y - A x|^2 == |y - A p|^2 + |A (x - p)|^2 for the projection p and every x."""
    expression, present = parse(subject.text), subject.tensors()
    value = torch.randn_like(subject.expected(present))
    nearest = subject.expected({**present, **project([(expression, value)], present, subject.fixed)})
    other = subject.expected(present)
    parts = (value - nearest).square().sum() + (other - nearest).square().sum()
    torch.testing.assert_close((value - other).square().sum(), parts, **EXACT)


# Text


@every
def test_text_and_object_are_one_value(subject: Subject) -> None:
    expression = parse(subject.text)
    assert str(expression) == subject.text
    assert parse(str(expression)) == expression
    assert hash(parse(subject.text)) == hash(expression)
    assert repr(expression) == f"parse({subject.text!r})"


@every
def test_expressions_are_data(subject: Subject) -> None:
    expression = parse(subject.text)
    assert pickle.loads(pickle.dumps(expression)) == expression
    assert deepcopy(expression) == expression
    assert parse(json.loads(json.dumps(str(expression)))) == expression
    tie = Tie(("target", "weight"), expression)
    assert Tie.from_json(json.loads(json.dumps(tie.to_json()))) == tie


@every
def test_sources_are_named_from_left_to_right(subject: Subject) -> None:
    expression = parse(subject.text)
    named = {".".join(address) for address in expression.sources()}
    assert named == {*subject.sources, *subject.buffers}
    assert list(expression.sources()) == sorted(expression.sources(), key=lambda a: subject.text.index(".".join(a)))


@every
def test_renaming_a_source_is_substituting_it(subject: Subject) -> None:
    expression = parse(subject.text)
    renamed = {address: parse(".".join(("other", *address))) for address in expression.sources()}
    text = subject.text
    for name in {*subject.sources, *subject.buffers}:
        text = text.replace(name, f"other.{name}")
    assert str(expression.substitute(renamed)) == text


# The corpus is whole


def test_the_corpus_holds_every_transform() -> None:
    used = [transform for subject in SUBJECTS for transform in transforms(parse(subject.text))]
    assert {type(transform) for transform in used} == set(Transform.__subclasses__())
    assert {transform.name for transform in used if isinstance(transform, View)} == set(VIEWS)
    texts = " ".join(subject.text for subject in SUBJECTS)
    assert all(f".{name}" in texts for name in METHODS - set(SAME))
    assert all(f".{name}()" in texts for name in BENDS)
    assert all(f"{name}(" in texts for name in FUNCTIONS)


def test_the_corpus_can_contradict() -> None:
    """A wrong oracle is seen: the laws above do not hold by themselves."""
    subject = next(subject for subject in SUBJECTS if subject.text == "a.w.flip(0)")
    tensors = subject.tensors()
    assert not torch.equal(parse("a.w.roll(1, 0)").value(tensors), subject.expected(tensors))
    assert not torch.equal(matrix(subject).T, torch.eye(4, dtype=torch.float64))
