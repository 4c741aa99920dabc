"""Looking at source code: processor time for a thousand files of libraries, beside parsing them with `ast` alone.

The files are those of torch and transformers, whichever are installed, read from disk each time. One thread, the least
of a few rounds.

    python benchmarks/source.py --json benchmarks/results/source.json
"""

import ast
import importlib.util
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ratio import Report, json_path

from tied.checking.source.files import python_files
from tied.checking.source.look import look_at_source

ROUNDS = 3
LIBRARIES = ("torch", "transformers")


def parse_all(folder: Path) -> None:
    """Parse every file, and keep nothing."""
    for path in python_files(folder):
        with suppress(SyntaxError):
            ast.parse(path.read_bytes())


def least(call: Callable[[Path], Any], folder: Path) -> float:
    """Return the least processor time of a few calls, in seconds."""
    times: list[float] = []
    for _ in range(ROUNDS):
        begin = time.process_time()
        call(folder)
        times.append(time.process_time() - begin)
    return min(times)


def main() -> None:
    path = json_path(__doc__)
    report = Report("Looking at source code: seconds of processor time for 1,000 files")
    print(report.title)
    for name in LIBRARIES:
        found = importlib.util.find_spec(name)
        if not found or not found.origin:
            continue
        folder = Path(found.origin).parent
        files = sum(1 for _ in python_files(folder))
        seconds = {
            way: least(call, folder) / files * 1000
            for way, call in (("tied check", look_at_source), ("ast.parse", parse_all))
        }
        for way, taken in seconds.items():
            print(f"{name:14} {files:6,} files   {way:12} {taken:6.2f} s")
            report.rows.append({"library": name, "files": files, "way": way, "seconds per 1,000 files": taken})
        report.budget(f"seconds for 1,000 files of {name}", found=seconds["tied check"], at_most=3.0)
    report.write(path)


if __name__ == "__main__":
    main()
