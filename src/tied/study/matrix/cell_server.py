"""The server of the matrix: a process that has torch loaded, and starts every cell in a process of its own.

Owns: starting, stopping and hearing cells. It reads one request from its standard input, a line of JSON, and
writes outcomes as lines of JSON to its standard output. When its input is closed, it stops all cells and ends.
Read next: `run.py`, the other end.

Where there is fork, a cell starts within milliseconds, since torch is loaded already; elsewhere it loads it anew.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

FORKS = sys.platform == "linux"
"""Fork is not safe with the system libraries of macOS, and not there on Windows."""

PRELOADED = (
    "torch._dynamo",
    "torch._functorch.aot_autograd",
    "torch.ao.quantization",
    "torch.distributed.checkpoint.state_dict",
    "torch.distributed.fsdp",
    "torch.nn.parallel",
    "safetensors.torch",
    "accelerate",
    "torchao.quantization",
)
STARTING_SECONDS = 0 if FORKS else 60
"""What a cell may take, over its limit, to load torch."""


@dataclass(frozen=True)
class Request:
    """What to run.

    Attributes:
        cells: Kind, row and recipe of each cell, in order.
        registry: Module whose `ROWS` are the rows.
        jobs: How many cells at a time.
        limit_seconds: How long a cell may take.
    """

    cells: list[list[str]]
    registry: str
    jobs: int
    limit_seconds: float


@dataclass
class Running:
    """A cell under way."""

    cell: list[str]
    process: BaseProcess
    answers: Connection
    begin: float

    def seconds(self) -> float:
        """Return how long it has been running."""
        return time.monotonic() - self.begin

    def stop(self) -> None:
        """End the cell and all processes that it started."""
        if self.process.pid and hasattr(os, "killpg"):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.join()
        self.answers.close()


def cell(names: list[str], registry: str, answers: Connection) -> None:
    """Run one cell in this process, and answer with its outcome."""
    if hasattr(os, "setsid"):
        os.setsid()
    warnings.simplefilter("ignore")
    import torch

    from tied.study.matrix.kinds import KINDS
    from tied.study.matrix.row import judge
    from tied.study.matrix.subject import SEED, Subject

    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    kind, row, recipe = names
    found = next(known for known in importlib.import_module(registry).ROWS if known.name == row)
    outcome = judge(found, Subject.fresh(KINDS[kind], KINDS[kind].column(recipe)))
    answers.send_bytes(json.dumps(outcome.to_json()).encode())


def _start(names: list[str], registry: str) -> Running:
    context: Any = multiprocessing.get_context("fork" if FORKS else "spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=cell, args=(names, registry, sender))
    process.start()
    sender.close()
    return Running(names, process, receiver, time.monotonic())


def _died(running: Running) -> dict[str, Any]:
    running.process.join(5)
    code = running.process.exitcode or 0
    how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
    return _failure(running, f"its process ended without an answer: {how}")


def _failure(running: Running, reason: str) -> dict[str, Any]:
    kind, row, recipe = running.cell
    facts = {"kind": kind, "row": row, "recipe": recipe, "state": "error", "reason": reason}
    return {**facts, "details": [], "seconds": running.seconds()}


def _heard(running: Running) -> dict[str, Any]:
    try:
        return json.loads(running.answers.recv_bytes())
    except (EOFError, OSError):
        return _died(running)


def outcomes(request: Request) -> Iterator[dict[str, Any]]:
    """Run all cells, a few at a time, and yield each outcome when it is there; stop when the input is closed."""
    waiting, running = deque(request.cells), list[Running]()
    limit = request.limit_seconds + STARTING_SECONDS
    try:
        while waiting or running:
            while waiting and len(running) < request.jobs:
                running.append(_start(waiting.popleft(), request.registry))
            patience = max(0.0, limit - max(one.seconds() for one in running))
            ready = wait([*(one.answers for one in running), *_input()], patience)
            if _closed(ready):
                return
            for one in [one for one in running if one.answers in ready or one.seconds() > limit]:
                late = f"took longer than {request.limit_seconds:g} s"
                yield _heard(one) if one.answers in ready else _failure(one, late)
                one.stop()
                running.remove(one)
    finally:
        for one in running:
            one.stop()


def _input() -> list[int]:
    """Return the standard input where it can be waited for."""
    return [0] if os.name == "posix" else []


def _closed(ready: list[Any]) -> bool:
    return 0 in ready and not os.read(0, 1)


def _quiet() -> int:
    """Keep the standard output for answers: what cells print goes nowhere."""
    answers = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return answers


def _preload(registry: str) -> None:
    warnings.simplefilter("ignore")
    importlib.import_module(registry)
    import torch

    torch.set_num_threads(1)
    for name in PRELOADED:
        with suppress(ImportError):
            importlib.import_module(name)


def main() -> None:
    """Serve one request."""
    with os.fdopen(0, "rb", buffering=0, closefd=False) as requests, os.fdopen(_quiet(), "wb", buffering=0) as answers:
        request = Request(**json.loads(requests.readline()))
        if FORKS:
            _preload(request.registry)
        for outcome in outcomes(request):
            answers.write(json.dumps(outcome).encode() + b"\n")
