"""What the record of every run has: how it is filled, how long that took, and what its JSON says first.

Owns: keeping findings until the run ends or is stopped. Must not print or know any study.
Read next: a study's own record, such as `proofs/report.py`.
"""

from __future__ import annotations

import platform
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import torch

from tied.study.progress import Progress

Found = TypeVar("Found")


def versions() -> dict[str, str]:
    """Return the versions that figures depend on."""
    return {"torch": torch.__version__, "python": platform.python_version()}


@dataclass(kw_only=True)
class RunRecord(ABC, Generic[Found]):
    """What a run has found so far.

    Attributes:
        interrupted: Whether it was stopped.
        elapsed_seconds: How long it took.
    """

    format_version: ClassVar[int] = 1

    interrupted: bool = False
    elapsed_seconds: float = 0.0

    @abstractmethod
    def add(self, found: Found) -> None:
        """Keep one finding."""

    def collect(self, events: Iterable[Progress | Found], show: Callable[[Progress], None]) -> None:
        """Keep what a run finds until it is done or interrupted by Ctrl-C, and take the time."""
        begin = time.perf_counter()
        try:
            for event in events:
                if isinstance(event, Progress):
                    show(event)
                else:
                    self.add(event)
        except KeyboardInterrupt:
            self.interrupted = True
        self.elapsed_seconds = time.perf_counter() - begin

    def to_json(self) -> dict[str, Any]:
        """Return plain values, ready for `json.dumps`."""
        return {
            "format_version": self.format_version,
            "versions": versions(),
            "interrupted": self.interrupted,
            "elapsed_seconds": self.elapsed_seconds,
        }
