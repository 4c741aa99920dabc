"""`tied shrink`, `tied expand`, `tied repair`: checkpoints written anew, from one place to another.

Owns: the options, the progress, the words around the result, and the exit status. Must not know files.

Exit status: 0 written, 2 not written, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from tied.cli.near_names import near_file
from tied.cli.terminal import say
from tied.cli.wording import said

if TYPE_CHECKING:
    from tied.files.rewriting.rewrite import Tell
    from tied.files.rewriting.shrink import Rewritten

NOT_WRITTEN, INTERRUPTED = 2, 130
LARGE = 1 << 26
WINNERS = ("source", "target", "mean")
UNWRITTEN = "Nothing was written."

Old = Annotated[Path, typer.Argument(metavar="IN", help="A safetensors file, an index, a folder, or a .pt.")]
New = Annotated[Path, typer.Argument(metavar="OUT", help="The new file, or the new folder for shards.")]


def shrink(path: Old, target: New) -> None:
    """Write a checkpoint without what it stores twice.

    Exact and transposed copies go, and rows of larger tensors; the header says how to get them back, bit for bit,
    which is tried before OUT appears. IN is never changed.

    Exit status: 0 written, 2 not written.
    """
    from tied.files import shrink as do

    _run("shrink", target, lambda tell: do(path, target, tell=tell))


def expand(path: Old, target: New) -> None:
    """Write a checkpoint with every name stored, for readers that know no ties.

    What `tied shrink` made becomes what it was, bit for bit. IN is never changed.

    Exit status: 0 written, 2 not written.
    """
    from tied.files import expand as do

    _run("expand", target, lambda tell: do(path, target, tell=tell))


def repair(
    path: Old,
    target: New,
    *,
    keep: Annotated[str, typer.Option(help="Whose value wins: source, target or mean.")] = "",
) -> None:
    """Write a checkpoint in which every promise holds: of its header, its index, its ties.

    Says in one line each what was done. IN is never changed.

    Exit status: 0 written, 2 not written.
    """
    if keep and keep not in WINNERS:
        _stop("repair", f"--keep must be {', '.join(WINNERS[:-1])} or {WINNERS[-1]}, not {keep!r}\n{UNWRITTEN}")
    from tied.files import repair as do

    winner: Any = keep or None
    _run("repair", target, lambda tell: do(path, target, keep=winner, tell=tell))


def _run(command: str, target: Path, work: Callable[[Tell], Rewritten]) -> None:
    from tied.errors import TieError
    from tied.reporting.text import size_text

    begin = time.perf_counter()
    try:
        with _ended_by_signals(), _progress() as tell:
            done = work(tell)
    except TieError as error:
        _stop(command, said(error, state=UNWRITTEN))
    except OSError as error:
        path = _meant(error, target)
        near = near_file(path) if isinstance(error, FileNotFoundError) else ""
        _stop(command, f"{error.strerror or error}: {str(path)!a}{near}\n{UNWRITTEN}")
    except MemoryError:
        _stop(command, f"out of memory\n{UNWRITTEN}")
    except KeyboardInterrupt:
        say("Interrupted; nothing was written.")
        raise typer.Exit(INTERRUPTED) from None
    seconds = time.perf_counter() - begin
    print(*done.lines, sep="\n")
    speed = f"{size_text(int(done.after / seconds))}/s"
    say(f"{size_text(done.before)} of tensors became a file of {size_text(done.after)} in {seconds:.1f} s, {speed}")


def _meant(error: OSError, target: Path) -> Path:
    """Return the path that an error is about: of a file that is being written, the one that was asked for."""
    found = Path(str(error.filename or target))
    return target if found.name.startswith(".tied-") else found


def _stop(command: str, problem: str) -> NoReturn:
    say(f"tied {command}: {problem}")
    raise typer.Exit(NOT_WRITTEN)


@contextmanager
def _ended_by_signals() -> Generator[None]:
    """Let a request to end take what was begun away, as Ctrl-C does."""

    def end(number: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt

    wanted = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.signal(number, end) for number in wanted}
    try:
        yield
    finally:
        for number, handler in before.items():
            with contextlib.suppress(TypeError):
                signal.signal(number, handler)


@contextmanager
def _progress() -> Generator[Tell]:
    """Show bars with bytes per second, on a terminal and where there is much to do."""
    if not sys.stderr.isatty():
        yield lambda stage, done, total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def tell(stage: str, done: int, total: int) -> None:
            if total >= LARGE:
                if stage not in tasks:
                    tasks[stage] = bars.add_task(stage, total=total)
                bars.update(tasks[stage], completed=done)

        yield tell
