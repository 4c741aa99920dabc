"""The protocol of transforms: what each must say, and the default right inverse."""

import inspect
import subprocess
import sys

import pytest
import torch

from tied import InverseError
from tied.algebra.arithmetic import Add, Kron, Matmul, Multiply, ScaleBy
from tied.algebra.transform import FORMS, FUNCTIONS, METHODS, OPERATORS, Transform, correct, settle
from tied.algebra.views import Index, Span, view
from tied.errors import TieError

KINDS = Transform.__subclasses__()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_transform_is_frozen_data_with_a_law(kind: type[Transform]) -> None:
    assert kind.__dataclass_params__.frozen
    assert kind.__dataclass_params__.eq
    assert "Law: " in inspect.getdoc(kind)
    assert {"forward", "adjoint", "text"} <= set(vars(kind))


@pytest.mark.parametrize("transform", [Add(), Multiply(), Matmul(), Kron()], ids=repr)
def test_what_mixes_entries_has_no_right_inverse(transform: Transform) -> None:
    with pytest.raises(InverseError) as caught:
        transform.right_inverse(torch.ones(2), torch.ones(2))
    assert caught.value.problem == f"{type(transform).__name__} has no right inverse."


@pytest.mark.parametrize("copies", [2, 3, 7, 10, 100, 1000])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_mean_of_equal_values_is_that_value(copies: int, dtype: torch.dtype) -> None:
    """Bit for bit: the mean of three equal floats by sum and division is not."""
    present, value = torch.zeros(50, dtype=dtype), torch.randn(50).to(dtype)
    spread = view("expand", copies, 50)
    assert torch.equal(spread.right_inverse(spread.forward(value), present), value)


def test_unread_entries_keep_their_present_value() -> None:
    present = torch.tensor([1.0, 2.0, 3.0])
    assert Index((Span(1, 2),)).right_inverse(torch.tensor([9.0]), present).tolist() == [1, 9, 3]
    assert ScaleBy((2, 0, 4)).right_inverse(torch.tensor([8.0, 0, 8]), present).tolist() == [4, 2, 2]


def test_the_mean_is_weighted_and_survives_infinity() -> None:
    total, weight, present = (
        torch.tensor([6.0, 1.0, float("inf")]),
        torch.tensor([3.0, 0.0, 1.0]),
        torch.tensor([0, 5.0, 0]),
    )
    mean = settle(total, weight, present)
    assert mean.tolist() == [2, 5, float("inf")]
    assert correct(mean, torch.tensor([3.0, 7.0, float("nan")]), weight).tolist() == [3, 5, float("inf")]


def test_the_names_of_the_language_are_words() -> None:
    assert all(name.isidentifier() for name in METHODS)
    assert all(hasattr(torch.Tensor, name) for name in METHODS - {"softplus"})
    assert issubclass(InverseError, TieError)


def test_the_table_of_the_language_is_full() -> None:
    """Each spelling has something that builds it, once `tied.algebra` is imported: no file was forgotten there."""
    spellings = {*METHODS, *OPERATORS, *FUNCTIONS, "parse"}
    assert not (missing := sorted(spellings - FORMS.keys())), f"nothing builds {', '.join(missing)}"
    code = "from tied.algebra.expression import FORMS; print(*FORMS)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert sorted(found) == sorted(FORMS)
