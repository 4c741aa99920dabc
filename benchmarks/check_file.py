"""The audit of a checkpoint costs about one and a half reads of it, in a few megabytes of memory.

A file of 3.5 GB is made: 175 tensors, 54 of them exact copies of others, 9 transposed copies, and a fused projection
beside its parts. Then it is audited, and the same is asked of the ways that people write: every tensor
hashed, and every pair of one shape compared by `torch.equal`. The measure is reading the file once. All ways
see the file in the page cache; each round runs each way, in a process of its own, so that memory is its own too.

    python benchmarks/check_file.py --json benchmarks/results/check_file.json
    python benchmarks/check_file.py --file somewhere.safetensors    # makes it there, or takes what is there

"own memory" is what a process holds beyond the file's pages (RssAnon), at its largest, less what it held when
it had imported all that it needs.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from ratio import Report

from tied.files.reading.safetensors_header import Header

WIDTH, VOCABULARY, LAYERS = 1536, 50257, 20
COPIES, TRANSPOSED = 54, 9


def plan() -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[str, str]]]:
    """Return the shapes, and what each copy is a copy of, and how."""
    shapes: dict[str, tuple[int, ...]] = {"embed.weight": (VOCABULARY, WIDTH)}
    copies: dict[str, tuple[str, str]] = {}
    for i in range(LAYERS):
        shapes |= {f"layers.{i}.qkv.weight": (3 * WIDTH, WIDTH), f"layers.{i}.out.weight": (WIDTH, WIDTH)}
        shapes |= {f"layers.{i}.up.weight": (4 * WIDTH, WIDTH), f"layers.{i}.down.weight": (WIDTH, 4 * WIDTH)}
        shapes |= {f"layers.{i}.norm{k}.weight": (WIDTH,) for k in (1, 2)}
        shapes |= {f"layers.{i}.up.bias": (4 * WIDTH,), f"layers.{i}.down.bias": (WIDTH,)}
    shapes |= {f"extra.{i}.weight": (WIDTH, 5000 + i) for i in range(9)}
    shapes |= {f"layers.0.{part}.weight": (WIDTH, WIDTH) for part in "qkv"}
    for i in range(TRANSPOSED - 1):
        copies[f"layers.{i}.down.weight"] = (f"layers.{i}.up.weight", "T")
    shapes |= {"head.weight": (VOCABULARY, WIDTH), "decoder.weight": (WIDTH, VOCABULARY)}
    copies |= {"head.weight": ("embed.weight", ""), "decoder.weight": ("embed.weight", "T")}
    for i in range(1, LAYERS):
        copies |= {f"layers.{i}.norm{k}.weight": ("layers.0.norm1.weight", "") for k in (1, 2)}
    for i in range(1, 9):
        copies[f"layers.{i}.out.weight"] = ("layers.0.out.weight", "")
    for i in range(1, 8):
        copies[f"layers.{i}.down.bias"] = ("layers.0.down.bias", "")
    for part, rows in zip("qkv", (f"{i * WIDTH}:{(i + 1) * WIDTH}" for i in range(3)), strict=True):
        copies[f"layers.0.{part}.weight"] = ("layers.0.qkv.weight", rows)
    return shapes, copies


def make(path: Path) -> None:
    """Write the file, one tensor in memory at a time."""
    shapes, copies = plan()
    with path.open("wb") as stream:
        stream.write(Header.of({name: ("F32", shape) for name, shape in shapes.items()}, {"format": "pt"}).to_bytes())
        for name, shape in shapes.items():
            source, how = copies.get(name, (name, ""))
            seed = list(shapes).index(source)
            value = np.random.default_rng(seed).standard_normal(shapes[source], np.float32)
            if how == "T":
                value = np.ascontiguousarray(value.T)
            elif how:
                value = value[slice(*map(int, how.split(":")))]
            assert value.shape == shape
            value.tofile(stream)


# -- the ways


def read_once(path: Path) -> object:
    content = np.memmap(path, np.int64, "r", shape=(path.stat().st_size // 8,))
    return int(content.sum())


def audited(path: Path) -> object:
    from tied.files.auditing.audit import audit

    return count(audit(path))


def proven(path: Path) -> object:
    from tied.files.auditing.audit import audit

    return count(audit(path, prove=True))


def count(report: object) -> list[int]:
    groups = [group for group in report.groups if not any("[" in t for t in group.transforms)]  # type: ignore[attr-defined]
    exact = sum(t == "identity" for group in groups for t in group.transforms[1:])
    return [exact, sum(t == ".T" for group in groups for t in group.transforms[1:])]


def hashed(path: Path) -> object:
    """What finds exact copies only: the fastest hash of Python, over all of the file."""
    import hashlib

    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        digests = [hashlib.blake2b(file.get_tensor(name)).digest() for name in file.keys()]  # noqa: SIM118
    return len(digests) - len(set(digests))


def pairwise(path: Path) -> object:
    """What most people write: `torch.equal` on all pairs of one shape; stopped after a minute."""
    import torch
    from safetensors import safe_open

    torch.set_num_threads(1)
    begin, found = time.perf_counter(), 0
    with safe_open(path, "pt") as file:
        names = list(file.keys())
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
        for place, name in enumerate(names):
            for other in names[:place]:
                turned = shapes[other][::-1]
                if shapes[name] not in (shapes[other], turned):
                    continue
                value = file.get_tensor(other)
                value = value if shapes[name] == shapes[other] else value.T
                found += torch.equal(file.get_tensor(name), value)
                if time.perf_counter() - begin > 60:
                    return f"stopped at tensor {place} of {len(names)}"
    return found


WAYS = {"read once": read_once, "tied": audited, "tied --prove": proven, "blake2b of all": hashed}
SLOW = {"torch.equal on pairs": pairwise}


def anonymous() -> int:
    """Return the bytes of this process that are no file's pages; 0 where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


def child(way: str, path: Path) -> None:
    """Run one way and print what it took."""
    import threading

    import tied.files.auditing.audit  # noqa: F401  (imports are not what is measured)

    before, largest, done = anonymous(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            largest[0] = max(largest[0], anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    wall, cpu = time.perf_counter(), time.process_time()
    found = {**WAYS, **SLOW}[way](path)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    done.set()
    watcher.join()
    print(json.dumps({"wall": wall, "cpu": cpu, "own": max(largest[0] - before, 0), "found": found}))


def measured(way: str, path: Path) -> dict[str, float]:
    arguments = [sys.executable, __file__, "--way", way, "--file", str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return json.loads(subprocess.run(arguments, check=True, capture_output=True, text=True, env=environment).stdout)


def main() -> None:
    """Make the file, measure all ways in turn, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="PATH")
    parser.add_argument("--file", type=Path, metavar="PATH")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        child(options.way, options.file)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = options.file or Path(folder) / "model.safetensors"
        if not path.exists():
            make(path)
        compare(path, options.rounds, options.json)


def compare(path: Path, rounds: int, out: Path | None) -> None:
    report = Report(f"Time of an audit of {path.stat().st_size / 1e9:.2f} GB, divided by the time to read it once")
    read_once(path)
    taken: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for number in range(rounds):
        for way in [*WAYS][:: 1 if number % 2 else -1]:
            taken[way].append(measured(way, path))
    print(f"{report.title}\n{'':22}{'wall':>20}{'processor':>20}{'own MB':>9}  found")
    for way, runs in [*taken.items(), *((way, [measured(way, path)]) for way in SLOW)]:
        show(report, way, runs, taken["read once"])
    by_way = {row["way"]: row for row in report.rows}
    report.budget("time of the audit / one read", found=by_way["tied"]["wall"], at_most=1.6)
    report.budget("own memory of the audit, MB", found=by_way["tied"]["own_mb"], at_most=50)
    report.budget("copies missed", found=abs(COPIES - by_way["tied"]["found"][0]), at_most=0)
    report.budget("transposed copies missed", found=abs(TRANSPOSED - by_way["tied"]["found"][1]), at_most=0)
    report.write(out)


def show(report: Report, way: str, runs: list[dict[str, float]], base: list[dict[str, float]]) -> None:
    row: dict[str, object] = {
        "way": way,
        "found": runs[0]["found"],
        "seconds": statistics.median(r["cpu"] for r in runs),
    }
    texts: list[str] = []
    for clock in ("wall", "cpu"):
        ratios = [run[clock] / one[clock] for run, one in zip(runs, base, strict=False)]
        row[clock] = statistics.median(ratios)
        texts.append(f"{row[clock]:.2f} [{min(ratios):.2f}-{max(ratios):.2f}]")
    row["own_mb"] = max(run["own"] for run in runs) / 1e6
    print(f"{way:22}{texts[0]:>20}{texts[1]:>20}{row['own_mb']:>9.0f}  {row['found']}", flush=True)
    report.rows.append(row)


if __name__ == "__main__":
    main()
