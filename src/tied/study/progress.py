"""How a study says how far it is: as values, for whoever shows them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """How far a stage is.

    Attributes:
        stage: What is going on, in one word.
        done: Units done.
        total: Units in all.
        detail: The latest fact.
        milestone: Whether it is worth a line where nothing can be redrawn.
    """

    stage: str
    done: int
    total: int
    detail: str = ""
    milestone: bool = True
