"""What cannot be trained, and why: the errors of this room.

Owns: the classes. Must not import torch. Read next: `plan.py`.
"""

from __future__ import annotations

from tied.errors import TieError


class DataError(TieError, ValueError):
    """The data cannot be trained on; the message names the file and says what to do."""

    changed = "Nothing was trained or written."


class FolderError(TieError, ValueError):
    """The folder of the run does not fit what was asked: it holds a run, or none, or another one."""

    changed = "Nothing was trained or written."


class DivergedError(TieError, ArithmeticError):
    """The loss is no number any more."""

    changed = "The last checkpoint is as it was."


class PlanError(ValueError):
    """A field of a plan has a value that makes no sense; one line, with the option's name."""

    def __init__(self, name: str, value: object, expected: str) -> None:
        super().__init__(f"--{name.replace('_', '-')} must be {expected}, not {value}")


class MissingPackageError(ImportError):
    """A package that this data or this command needs is not installed; the message is one line."""


for _kind in (DataError, DivergedError, FolderError, MissingPackageError, PlanError):
    _kind.__module__ = "tied.study.train"  # where they are public
