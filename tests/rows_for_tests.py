"""Rows for the tests of the matrix: two real ones between some that misbehave.

The server of the matrix imports this module by its name, in a process of its own.
"""

import os
import sys
import time

from tied.study.matrix.law import Check
from tied.study.matrix.row import Row, row
from tied.study.matrix.rows import ROWS as REAL
from tied.study.matrix.subject import DoesNotApply, Subject

THEME = "misbehaving"


def only_tied(subject: Subject) -> None:
    if subject.column.key != "tied":
        raise DoesNotApply("one recipe is enough here")


@row(THEME)
def aborts(subject: Subject) -> list[Check]:
    """Crash the process."""
    only_tied(subject)
    os.abort()


@row(THEME)
def sleeps(subject: Subject) -> list[Check]:
    """Take too long."""
    only_tied(subject)
    time.sleep(600)
    return []


@row(THEME)
def leaves(subject: Subject) -> list[Check]:
    """End the process as if all were well."""
    only_tied(subject)
    os._exit(0)


@row(THEME)
def chatters(subject: Subject) -> list[Check]:
    """Print where answers are expected."""
    sys.stdout.write("{}\n")
    os.write(1, b"{}\n")
    return [Check("chatter", True, "was printed")]


@row(THEME, needs="no_such_package_of_mine")
def needs(subject: Subject) -> list[Check]:
    """Need what is not there."""
    raise AssertionError("must not be run")


def real(name: str) -> Row:
    return next(known for known in REAL if known.name == name)


ROWS = (aborts, sleeps, real("deepcopy"), leaves, chatters, needs, real("ckpt_disagree"))
