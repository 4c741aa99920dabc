"""Threads that are reading an attribute of some module just now, as seen from a thread that changes one.

Owns: waiting for them. Must not change anything. Read next: `transaction.py`.

A module whose class reads an attribute late has no entry for it. A thread that looked the attribute up on the class
before, found nothing there, and was interrupted before it looked for the entry, would find that nowhere. Hence the
order of a change: first the class reads late; then these threads go on; then the entry goes.
"""

from __future__ import annotations

import sys
import time
from threading import get_ident
from types import FrameType

from torch import nn

_ROUNDS = 10_000  # a thread that a debugger has stopped is not waited for until it goes on


def let_readers_pass() -> None:
    """Return when every thread that was inside `nn.Module.__getattr__` has left it."""
    inside = {thread: frame for thread, frame in sys._current_frames().items() if _is_reading(thread, frame)}
    for _ in range(_ROUNDS if inside else 0):
        frames = sys._current_frames()
        if not any(frames.get(thread) is frame for thread, frame in inside.items()):
            return
        time.sleep(0)


def _is_reading(thread: int, frame: FrameType) -> bool:
    return thread != get_ident() and frame.f_code is nn.Module.__getattr__.__code__
