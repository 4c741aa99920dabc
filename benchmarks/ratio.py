"""The one way in which speed is compared here: as ratios, measured side by side.

Each round calls every way in turn, in a different order, so that a slow moment of the machine hits all of
them alike; a ratio is taken within its round, and the median over the rounds is reported with the band that
holds the middle 80 %. Time is the processor time of this process, on one thread, without the garbage
collector. A way is called as often per round as fills a few milliseconds.

    python benchmarks/ratio.py      # how far a function is from itself: ratios nearer to 1 mean nothing
"""

import argparse
import gc
import json
import platform
import statistics
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

Way = Callable[[], Any]


@dataclass(frozen=True)
class Ratio:
    """Time of a way / time of the base: median and 10-90 % band over the rounds; and the time itself."""

    median: float
    low: float
    high: float
    microseconds: float

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}-{self.high:.2f}]"


@dataclass
class Report:
    """What one script found: rows of ratios, budgets with whether each was met, and notes."""

    title: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    budgets: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, case: str, ratios: dict[str, Ratio]) -> None:
        """Keep the ratios of one case and print them as a line of the table."""
        if not self.rows:
            print(f"{self.title}\n{'':34}" + "".join(f"{way:>20}" for way in ratios))
        print(f"{case:34}" + "".join(f"{ratio!s:>20}" for ratio in ratios.values()), flush=True)
        self.rows += [{"case": case, "way": way, **asdict(ratio)} for way, ratio in ratios.items()]

    def ratio(self, case: str, way: str) -> float:
        """Return the median that was kept for one way in one case."""
        return next(row["median"] for row in self.rows if (row["case"], row["way"]) == (case, way))

    def budget(self, what: str, *, found: float, at_most: float) -> None:
        """Keep and print a budget: `found` is to be `at_most` at most."""
        met = found <= at_most
        print(f"budget {'met' if met else 'MISSED'}: {what}: {found:.3g}, at most {at_most:g}")
        self.budgets.append({"what": what, "found": found, "at_most": at_most, "met": met})

    def note(self, text: str) -> None:
        """Keep and print what a reader has to know, such as what was left out."""
        print(text)
        self.notes.append(text)

    def write(self, path: Path | None) -> None:
        """Write all that was kept as JSON, with the versions it holds for; nothing without a path."""
        if path is None:
            return
        versions = {"torch": torch.__version__, "python": platform.python_version(), "threads": 1}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**asdict(self), **versions}, indent=1) + "\n", encoding="utf-8")


def measure(ways: dict[str, Way], *, base: str, rounds: int = 60, milliseconds: float = 3.0) -> dict[str, Ratio]:
    """Compare `ways` with the one named `base`, whose own ratio is 1 by definition.

    Args:
        ways: What to call, by name. Each is called a few times first, to warm up.
        base: The name that the others are divided by.
        rounds: How many ratios the median is taken of.
        milliseconds: How long each way runs in each round.
    """
    with quiet():
        repeats = {name: repeats_for(way, milliseconds / 1000) for name, way in ways.items()}
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(rounds):
            for name in rotated(list(ways), number):
                seconds[name].append(seconds_per_call(ways[name], repeats[name]))
    return {name: compare(times, seconds[base]) for name, times in seconds.items()}


@contextmanager
def quiet() -> Generator[None]:
    """One thread and no garbage collector."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        torch.set_num_threads(threads)


def repeats_for(way: Way, seconds: float) -> int:
    """Return how many calls of `way` take about `seconds`.

    The first calls, which may build or compile something, do not count: one slow first call would set a way
    to one call per round, where the clock itself costs more than the call.
    """
    seconds_per_call(way, 10)
    count = 1
    while seconds_per_call(way, count) * count < seconds:
        count *= 2
    return count


def seconds_per_call(way: Way, repeats: int) -> float:
    begin = time.process_time_ns()
    for _ in range(repeats):
        way()
    return (time.process_time_ns() - begin) / repeats / 1e9


def rotated(names: list[str], number: int) -> list[str]:
    """Start from another name each time, and go backwards every second time."""
    names = names if number % 2 else names[::-1]
    start = number // 2 % len(names)
    return names[start:] + names[:start]


def compare(times: list[float], base: list[float]) -> Ratio:
    found = np.divide(times, base)
    low, median, high = np.quantile(found, [0.1, 0.5, 0.9]).tolist()
    return Ratio(median, low, high, statistics.median(times) * 1e6)


def json_path(description: str | None) -> Path | None:
    """Read `--json PATH` from the command line, as every script here understands it."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the figures to this file")
    return parser.parse_args().json


def main() -> None:
    """Measure a function against itself, at three durations."""
    path = json_path(__doc__)
    report = Report("The noise floor: the same matrix product, three times")
    for size in (8, 256, 1024):
        left, right = torch.rand(16, size), torch.rand(size, size)
        same = {name: lambda left=left, right=right: left @ right for name in ("base", "again", "once more")}
        report.add(f"16 × {size} @ {size} × {size}", measure(same, base="base"))
    report.write(path)


if __name__ == "__main__":
    main()
