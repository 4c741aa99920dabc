"""Torch's own functions on expressions: those of the language give expressions, all others say so."""

import pytest
import torch
from torch.nn import functional as F

from tied import Expression, KindError, ParseError, TransformError, ref
from tied.algebra import parse
from tied.algebra.transform import ATTRIBUTES, FORMS, METHODS

E, G = ref("e"), ref("f")


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (torch.cat([E, G]), "cat([e, f], 0)"),
        (torch.cat((E, G), 1), "cat([e, f], 1)"),
        (torch.cat([E, G], dim=-1), "cat([e, f], -1)"),
        (torch.concat([E, G]), "cat([e, f], 0)"),
        (torch.concatenate([E, G]), "cat([e, f], 0)"),
        (torch.stack([E, G], dim=1), "stack([e, f], 1)"),
        (torch.kron(E, G), "kron(e, f)"),
        (torch.exp(E), "e.exp()"),
        (F.softplus(E), "e.softplus()"),
        (torch.square(E), "e.square()"),
        (torch.sigmoid(E), "e.sigmoid()"),
        (torch.special.expit(E), "e.sigmoid()"),
        (torch.reciprocal(E), "e.reciprocal()"),
        (torch.neg(E), "-e"),
        (torch.add(E, G), "e + f"),
        (torch.sub(E, G), "e - f"),
        (torch.mul(E, 2), "2 * e"),
        (torch.mul(E, G), "e * f"),
        (torch.div(E, 2), "e / 2"),
        (torch.true_divide(E, 2), "e / 2"),
        (torch.negative(E), "-e"),
        (torch.mm(E, G), "e @ f"),
        (torch.matmul(E, G), "e @ f"),
        (torch.t(E), "e.T"),
        (torch.transpose(E, 0, 1), "e.transpose(0, 1)"),
        (torch.permute(E, (2, 0, 1)), "e.permute(2, 0, 1)"),
        (torch.permute(E, dims=(2, 0, 1)), "e.permute(2, 0, 1)"),
        (torch.reshape(E, (2, -1)), "e.reshape(2, -1)"),
        (torch.flatten(E, start_dim=1), "e.flatten(1, -1)"),
        (torch.unflatten(E, 0, (2, 2)), "e.unflatten(0, (2, 2))"),
        (torch.squeeze(E, 0), "e.squeeze(0)"),
        (torch.unsqueeze(E, 0), "e.unsqueeze(0)"),
        (torch.flip(E, dims=[0, 1]), "e.flip(0, 1)"),
        (torch.roll(E, shifts=1, dims=0), "e.roll(1, 0)"),
        (torch.narrow(E, 0, 1, 2), "e.narrow(0, 1, 2)"),
        (torch.repeat_interleave(E, 2, dim=0), "e.repeat_interleave(2, 0)"),
        (torch.detach(E), "e.detach()"),
        (2 * E, "2 * e"),
        (E @ G, "e @ f"),
    ],
    ids=lambda value: str(value),
)
def test_functions_of_torch_give_expressions(found: Expression, text: str) -> None:
    assert found == parse(text)
    assert str(found) == text


@pytest.mark.parametrize(
    "name", ["relu", "sum", "zeros_like", "clone", "swapaxes", "cumsum", "abs", "norm", "maximum", "where", "tril"]
)
def test_other_functions_are_no_transforms(name: str) -> None:
    arguments = {"maximum": (E, G), "where": (E, E, G), "cumsum": (E, 0), "swapaxes": (E, 0, 1)}.get(name, (E,))
    with pytest.raises(KindError) as caught:
        getattr(torch, name)(*arguments)
    assert "is not a transform of the language" in str(caught.value)


def test_a_layer_cannot_be_applied_to_an_expression() -> None:
    with pytest.raises(KindError) as caught:
        torch.nn.Linear(3, 3)(E)
    assert str(caught.value) == (
        "torch.linear is not a transform of the language.\n"
        "  found:    torch.linear(...)\n"
        "  expected: one of the transforms in the documentation, such as .T or torch.cat\n"
        "  fix:      compute it from parameters of its own: a parametrization, or a module\n"
        "The model was not changed."
    )


@pytest.mark.parametrize(
    "call",
    [
        lambda: torch.cat([E, torch.ones(2)]),
        lambda: torch.cat([torch.ones(2), E]),
        lambda: torch.stack([torch.ones(2), E], 0),
        lambda: torch.kron(torch.ones(2), E),
        lambda: torch.kron(E, torch.ones(2)),
        lambda: torch.add(torch.ones(2), E),
        lambda: torch.matmul(torch.ones(2, 2), E),
        lambda: torch.mul(torch.nn.Parameter(torch.ones(2)), E),
    ],
)
def test_tensors_cannot_stand_beside_expressions(call: object) -> None:
    with pytest.raises(KindError, match="A tensor cannot stand in an expression"):
        call()


@pytest.mark.parametrize(
    ("call", "found"),
    [
        (lambda: torch.add(E, G, alpha=2), "torch.add(Ref, Ref, alpha)"),
        (lambda: torch.div(E, 2, rounding_mode="floor"), "torch.div(Ref, int, rounding_mode)"),
        (lambda: torch.mul(2, E), "torch.mul(int, Ref)"),
        (lambda: torch.exp(E, out=None), "torch.exp(Ref, out)"),
        (lambda: torch.exp(input=E), "torch.exp(input)"),
        (lambda: torch.cat([E], out=None), "torch.cat(list, out)"),
    ],
)
def test_arguments_that_the_language_does_not_know(call: object, found: str) -> None:
    with pytest.raises(KindError) as caught:
        call()
    assert caught.value.found == found
    assert "call the method" in caught.value.fix


def test_wrong_arguments_keep_their_own_error() -> None:
    with pytest.raises(ParseError, match="whole numbers only"):
        torch.narrow(E, 0, 1, 2**62)
    with pytest.raises(KindError, match="cannot stand here"):
        torch.add(E, 2)
    with pytest.raises(TypeError, match=r"must be int|invalid combination"):
        torch.transpose(E, 0, 1.5)  # torch looks first


def test_every_method_of_the_language_is_one_of_expressions() -> None:
    assert all(hasattr(E, name) for name in METHODS - ATTRIBUTES)
    assert (E.T, E.mT) == (parse("e.T"), parse("e.mT"))
    assert all(FORMS[name].__doc__ for name in METHODS)
    assert set(dir(E)) >= METHODS


@pytest.mark.parametrize("name", ["add", "mul", "special_expit", "concat", "negative"])
def test_what_only_torch_calls_so_is_no_method(name: str) -> None:
    assert name in FORMS
    with pytest.raises(TransformError, match="is not a transform of the language"):
        getattr(E, name)


def test_a_method_that_is_no_transform_is_refused() -> None:
    with pytest.raises(TransformError) as caught:
        E.transpos(0, 1)
    assert str(caught.value) == (
        "'transpos' is not a transform of the language.\n"
        "  found:    e.transpos\n"
        "  expected: one of the transforms in the documentation, such as .T, .reshape(...) or .exp()\n"
        "  fix:      did you mean 'transpose'?\n"
        "The model was not changed."
    )
    with pytest.raises(TransformError, match=r"fix:      read values from the model itself"):
        E.tanh()


def test_private_names_are_absent_as_on_any_object() -> None:
    with pytest.raises(AttributeError, match=r"^'Ref' object has no attribute '_private'$"):
        _ = E._private
    assert not hasattr(E, "__len__")
    assert not hasattr(E, "shape")
