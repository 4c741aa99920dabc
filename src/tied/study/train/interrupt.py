"""Ctrl-C as a wish: training stops behind the present step, when everything is whole.

Owns: the signals. Read next: `loop.py`.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Listens to Ctrl-C and to a polite kill; a second Ctrl-C raises `KeyboardInterrupt` at once.

    Example:
        >>> with Stop() as stop:
        ...     signal.raise_signal(signal.SIGINT)
        ...     stop.wished
        True
    """

    def __init__(self) -> None:
        self.wished = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        """Listen; only the main thread of Python can."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._wish) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the signals as they were."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _wish(self, number: int, frame: FrameType | None) -> None:
        if self.wished and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.wished = True
