"""Every exception of `tied`, and the one template that words them.

Owns: the classes and `explain`. Must not import anything of ours. Read next: `algebra/expression.py`.

Code deep inside raises an error without knowing which call the user made; the public function that
was called adds it with `during`, so that each message starts with the user's own line.
"""

from __future__ import annotations

import difflib
from collections.abc import Generator, Iterable
from contextlib import contextmanager


def explain(call: str, problem: str, *, found: str, expected: str, fix: str, changed: str = "") -> str:
    """Word an error: the call, what is wrong, what was found and expected, a way out, the model's state.

    `changed` says how the model was left, where it is not as it was.
    """
    head = f"{call}\n  {problem}" if call else problem
    state = changed or "The model was not changed."
    return f"{head}\n  found:    {found}\n  expected: {expected}\n  fix:      {fix}\n{state}"


def nearest(name: str, valid: Iterable[str]) -> str:
    """Word the valid names that look most like `name`: "'a' or 'b'", or "" where nothing is near."""
    return " or ".join(f"'{near}'" for near in difflib.get_close_matches(name, sorted(set(valid)), n=3, cutoff=0.65))


def short(text: str) -> str:
    """Cut a long text for a message."""
    return text if len(text) <= 60 else f"{text[:57]}..."


class TieError(Exception):
    """The root of all errors of `tied`; `str(error)` follows the one template."""

    __module__ = "tied"
    call = ""
    changed = ""

    def __init_subclass__(cls) -> None:
        """Name the public place of every error."""
        cls.__module__ = "tied"

    def __init__(self, problem: str, *, found: str = "", expected: str = "", fix: str = "") -> None:
        """Keep the four parts; the call is added on the way out by `during`."""
        super().__init__(problem)
        self.problem, self.found, self.expected, self.fix = problem, found, expected, fix

    def __str__(self) -> str:
        """Return the whole message."""
        return explain(
            self.call, self.problem, found=self.found, expected=self.expected, fix=self.fix, changed=self.changed
        )

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle by parts, so that the error survives worker processes."""
        return _rebuild, (type(self), self.__dict__)


class TieWarning(UserWarning):
    """Something beside the model does not go along with a tie; nothing is wrong with the model itself."""

    __module__ = "tied"


def _rebuild(kind: type[TieError], parts: dict[str, str]) -> TieError:
    error = kind(parts["problem"])
    error.__dict__.update(parts)
    return error


class AddressError(TieError, LookupError):
    """An address names nothing in the model."""


class ParseError(TieError, ValueError):
    """A text is not an expression of the language."""


class TransformError(TieError, AttributeError):
    """An expression was asked for something that is not a transform of the language."""


class ShapeError(TieError, ValueError):
    """An expression does not give the shape that the target has, or cannot be computed at all."""


class DtypeError(TieError, TypeError):
    """An expression does not give the dtype that the target has."""


class DeviceError(TieError, ValueError):
    """Source and target, or two sources, live on different devices."""


class CycleError(TieError, ValueError):
    """A tie would make a tensor define itself."""


class TwiceTiedError(TieError, ValueError):
    """A target has a definition already."""


class KindError(TieError, TypeError):
    """A name leads to something else than was asked for: a buffer, a module, a computed attribute."""


class ConflictError(TieError, ValueError):
    """Two different values claim one tensor, and nobody said which of them wins."""


class InverseError(TieError, ValueError):
    """No source gives the value that was asked of the target."""


class WriteError(TieError, TypeError):
    """Somebody wrote to a target, which owns no memory."""


class SharingError(TieError, AssertionError):
    """Weights are not one weight, or do not train as one, where somebody says that they are."""


class SourceGoneError(TieError, RuntimeError):
    """A target reads a source that is not there any more."""


class FileError(TieError, ValueError):
    """A file is broken, hostile, or not what was asked for; the message names it."""

    changed = "Nothing was written."


@contextmanager
def during(call: str) -> Generator[None]:
    """Name the user's call in every `TieError` that leaves this block without one."""
    try:
        yield
    except TieError as error:
        error.call = error.call or call
        raise
