"""The errors themselves: one template, a builtin for each, and messages that survive other processes."""

import pickle

import pytest

import tied
from tied.errors import TieError, during, explain, nearest, short

BUILTINS = {
    "AddressError": LookupError,
    "ParseError": ValueError,
    "ShapeError": ValueError,
    "DtypeError": TypeError,
    "FileError": ValueError,
    "DeviceError": ValueError,
    "CycleError": ValueError,
    "TwiceTiedError": ValueError,
    "KindError": TypeError,
    "ConflictError": ValueError,
    "InverseError": ValueError,
    "WriteError": TypeError,
    "SourceGoneError": RuntimeError,
}


@pytest.mark.parametrize(("name", "builtin"), BUILTINS.items(), ids=BUILTINS)
def test_every_error_is_the_builtin_that_a_caller_expects(name: str, builtin: type[Exception]) -> None:
    kind = getattr(tied, name)
    assert issubclass(kind, tied.TieError)
    assert issubclass(kind, builtin)
    assert kind.__module__ == "tied"
    assert kind.__doc__
    with pytest.raises(builtin):
        raise kind("It went wrong.")


def test_no_error_was_forgotten() -> None:
    assert {kind.__name__ for kind in TieError.__subclasses__() if kind.__module__ == "tied"} >= set(BUILTINS)


def test_the_template() -> None:
    error = tied.ShapeError("It does not fit.", found="(2)", expected="(3)", fix="reshape it")
    assert str(error) == (
        "It does not fit.\n  found:    (2)\n  expected: (3)\n  fix:      reshape it\nThe model was not changed."
    )
    with pytest.raises(tied.ShapeError) as caught, during("tie(model, 'a', 'b')"):
        raise error
    alone = explain("", "It does not fit.", found="(2)", expected="(3)", fix="reshape it")
    assert str(caught.value) == f"tie(model, 'a', 'b')\n  {alone}"
    error.changed = "Half of the model was changed."
    assert str(error).endswith("\n  fix:      reshape it\nHalf of the model was changed.")


def test_the_first_call_is_the_users() -> None:
    with pytest.raises(TieError) as caught, during("outer()"), during("inner()"):
        raise TieError("It went wrong.")
    assert caught.value.call == "inner()"
    with pytest.raises(KeyError), during("outer()"):
        raise KeyError("another error passes")


def test_errors_survive_other_processes() -> None:
    with pytest.raises(tied.ParseError) as caught, during("tie(model)"):
        tied.parse("a.w.nonsense()")
    again = pickle.loads(pickle.dumps(caught.value))
    assert type(again) is tied.ParseError
    assert str(again) == str(caught.value)
    assert again.args == caught.value.args


def test_the_nearest_names() -> None:
    valid = ["encoder", "decoder", "embed", "head"]
    assert nearest("encoder", valid).startswith("'encoder'")
    assert nearest("embde", valid) == "'embed'"
    assert nearest("", valid) == nearest("zzz", valid) == nearest("a", []) == ""
    assert nearest("x" * 100_000, valid) == ""


def test_long_texts_are_cut() -> None:
    assert short("a" * 60) == "a" * 60
    assert short("a" * 61) == "a" * 57 + "..."
