"""Who reads: two threads, for what is worth a thread.

Owns: how many, and what is done at once. Must not know what is done.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

THREADS = 2
SMALL = 1 << 17


class Workers:
    """A pool that ends with its block, finished or not.

    Example:
        >>> with Workers() as workers:
        ...     workers.start(0, max, 3, 5).result()
        5
    """

    def __init__(self, threads: int = THREADS) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="tied")

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def start(self, nbytes: int, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Begin work on so many bytes; a few are done at once, by the caller."""
        if nbytes > SMALL:
            return self._pool.submit(function, *arguments)
        done: Future[Any] = Future()
        done.set_result(function(*arguments))
        return done
