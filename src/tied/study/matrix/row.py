"""Rows: operations on a tied model, and how a row's answer becomes the state of a cell.

Owns: `Row`, the mark that makes a function a row, and the seven states. Must not know single rows or recipes.
Read next: `study/matrix/rows`, the list of them.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tied.study.matrix.law import Check, failed, law
from tied.study.matrix.subject import DoesNotApply, Subject

State = Literal["ok", "refused", "same", "wrong", "error", "-", "not run"]
STATES: dict[State, str] = {
    "ok": "the model trains as one parameter, or the row's own question is answered right",
    "refused": "an error, where an error is the right answer; counts as ok",
    "same": "no worse than before the operation, but the recipe was not right to begin with",
    "wrong": "not right any more, and nothing said so",
    "error": "an error was raised",
    "-": "the recipe has nothing that the row could be done to",
    "not run": "a package that the row needs is not installed",
}
Answer = Subject | Iterable[Check]


@dataclass(frozen=True)
class Row:
    """One operation.

    Attributes:
        name: As in the table.
        theme: The group it stands in.
        run: Does it to a subject: returns what the user goes on with, or checks of its own.
        needs: A package that has to be installed.
        refusal: Why an error is the right answer; "" where it is not.
        absolute: Whether faults count that the recipe had before; the rows on training itself.
        since: What is known of fixes in later versions of torch.
    """

    name: str
    theme: str
    run: Callable[[Subject], Answer]
    needs: str = ""
    refusal: str = ""
    absolute: bool = False
    since: str = ""

    @property
    def what(self) -> str:
        """What the row does, in words."""
        return inspect.cleandoc(self.run.__doc__ or "")


def row(theme: str, name: str = "", **facts: Any) -> Callable[[Callable[[Subject], Answer]], Row]:
    """Make a function a row; its name is the row's if none is given, and its docstring says what it does."""
    return lambda run: Row(name or run.__name__, theme, run, **facts)


class Elsewhere(Exception):
    """An error of another process, in the words that it had there."""

    def __init__(self, lines: list[str]) -> None:
        """Keep the lines, the type of the error first."""
        super().__init__("\n".join(lines))
        self.lines = lines


@dataclass(frozen=True)
class Outcome:
    """One cell: what became of one recipe in one row.

    Attributes:
        kind: The kind of tie.
        row: Name of the row.
        recipe: Key of the recipe.
        state: One word.
        reason: Why, in one line; "" where there is nothing to say.
        details: All that was looked at, or the whole error.
        seconds: How long it took.
    """

    kind: str
    row: str
    recipe: str
    state: State
    reason: str = ""
    details: tuple[str, ...] = ()
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "details": list(self.details)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Outcome:
        """Make an outcome of what `to_json` returned."""
        facts: dict[str, Any] = {**values, "details": tuple(values["details"])}
        return cls(**facts)


def judge(row: Row, subject: Subject) -> Outcome:
    """Do a row to a subject and say what became of it."""
    begin = time.perf_counter()
    state, reason, details = _judged(row, subject)
    seconds = time.perf_counter() - begin
    return Outcome(subject.kind.name, row.name, subject.column.key, state, reason, tuple(details), seconds)


def _judged(row: Row, subject: Subject) -> tuple[State, str, list[str]]:
    try:
        answer = row.run(subject)
        checks = law(answer) if isinstance(answer, Subject) else list(answer)
    except DoesNotApply as reason:
        return "-", str(reason), []
    except Exception as error:  # whatever it is, it is what the user would see
        return _refused(row, error) if row.refusal else ("error", first_line(error), worded(error))
    lost = list(failed(checks))
    state = "ok" if not lost else _blamed(row, subject, lost)
    return state, "; ".join(map(str, lost)), [f"{'' if c.holds else 'NOT '}{c}" for c in checks]


def _refused(row: Row, error: Exception) -> tuple[State, str, list[str]]:
    return "refused", f"{row.refusal}: {first_line(error)}", worded(error)


def _blamed(row: Row, subject: Subject, lost: list[Check]) -> State:
    """Tell what the operation did from what was wrong before it."""
    if row.absolute:
        return "wrong"
    before = {check.name for check in failed(law(subject.another(seed=0)))}
    return "same" if {check.name for check in lost} <= before else "wrong"


def first_line(error: BaseException) -> str:
    """Return the type of an error and the first line of its message; with the next one if it ends in a colon."""
    first, *rest = worded(error)
    return f"{first} {rest[0].strip()}" if first.endswith(":") and rest else first


def worded(error: BaseException) -> list[str]:
    """Return the lines of an error, its type first."""
    if isinstance(error, Elsewhere):
        return error.lines
    lines = [line for line in str(error).splitlines() if line.strip()]
    return [f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__, *lines[1:]]
