"""Structured layers against building their matrix: forward and backward of 32 rows, n inputs and n outputs.

The base is what people write: the matrix from its parameters by an index, a repeat or `torch.kron`, then
`F.linear`. Beside the time stands the memory: the peak that one step needs above what was there before.

Then the crossovers: from which n a layer's fast algorithm beats the layer's own dense one, beside the n from which
`algorithm="auto"` takes it, and what that costs where a layer sees thousands of rows. Then index maps: the whole layer
with 64 rows against `theta[index] * signs` and `F.linear`, beside a dense layer without sharing, which no index map
reaches; and the matrix alone. All ways compute the same, which is checked before anything is timed. Every dense layer
here multiplies by `tied.nn.products`, which is faster than `F.linear` on some processors and the same on others.

    python benchmarks/structured.py --json benchmarks/results/structured.json
"""

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import torch
from ratio import Ratio, Report, compare, json_path, measure, quiet, rotated, seconds_per_call
from torch import Tensor, nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from tied.nn import (
    BlockCirculantLinear,
    BroadcastLinear,
    CirculantLinear,
    CodebookLinear,
    HashedLinear,
    KroneckerLinear,
    OrbitLinear,
    SetLinear,
    SymmetricLinear,
    ToeplitzLinear,
)

ROWS = 32
SIZES = (128, 256, 1024, 4096, 16384)
BLOCK = 64
Matrix = Callable[[nn.Module], Tensor]


# The layers, and the matrix of each as people write it


def row_tied(n: int) -> tuple[nn.Module, Matrix]:
    return BroadcastLinear(n, n, per="input", private="scale"), lambda m: m.theta.repeat(n, 1) * m.scale[:, None]


def by_index(layer: nn.Module, index: Tensor) -> tuple[nn.Module, Matrix]:
    return layer, lambda m: m.theta.flatten()[index]


def toeplitz(n: int) -> tuple[nn.Module, Matrix]:
    return by_index(ToeplitzLinear(n, n), torch.arange(n)[:, None] - torch.arange(n) + n - 1)


def circulant(n: int) -> tuple[nn.Module, Matrix]:
    return by_index(CirculantLinear(n), (torch.arange(n)[:, None] - torch.arange(n)) % n)


def block_circulant(n: int) -> tuple[nn.Module, Matrix]:
    at = torch.arange(n)
    block = at[:, None] // BLOCK * (n // BLOCK) + at // BLOCK
    return by_index(BlockCirculantLinear(n, n, BLOCK), block * BLOCK + (at[:, None] - at) % BLOCK)


def kronecker(n: int) -> tuple[nn.Module, Matrix]:
    return KroneckerLinear(n, n), lambda m: torch.kron(m.left, m.right)


def set_of(n: int) -> tuple[nn.Module, Matrix]:
    return SetLinear(n), lambda m: m.theta[0] * torch.eye(n) + m.theta[1] * torch.ones(n, n)


LAYERS = {
    "row-tied": row_tied,
    "Toeplitz": toeplitz,
    "circulant": circulant,
    f"block-circulant, {BLOCK}": block_circulant,
    "Kronecker": kronecker,
    "set": set_of,
}


# One step, its memory, and its time


def step(call: Callable[[Tensor], Tensor], layer: nn.Module, x: Tensor) -> Callable[[], None]:
    """Forward and backward, into empty gradients."""
    toward = torch.randn_like(call(x))

    def run() -> None:
        x.grad = None
        layer.zero_grad()
        call(x).backward(toward)

    return run


def steps(layer: nn.Module, matrix: Matrix, n: int, rows: int = ROWS) -> dict[str, Callable[[], None]]:
    """Return one step of the layer, and one of its matrix, after checking that they compute the same."""
    x = torch.randn(rows, n, requires_grad=True)
    naive: Callable[[Tensor], Tensor] = lambda x: functional.linear(x, matrix(layer), layer.bias_of_outputs())  # noqa: E731
    torch.testing.assert_close(layer(x), naive(x), rtol=1e-3, atol=1e-3)
    return {"tied": step(layer, layer, x), "naive": step(naive, layer, x)}


def peak(run: Callable[[], None]) -> float:
    """Return the most memory, in MB, that one step holds above what it found."""
    run()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    held, most = 0, 0
    for event in profiler.profiler.kineto_results.events():
        held += event.nbytes() if event.name() == "[memory]" else 0
        most = max(most, held)
    return most / 1e6


def few_rounds(ways: dict[str, Callable[[], None]], base: str = "naive") -> dict[str, Ratio]:
    """As `measure`, for steps that take long: three rounds, one call per way and round."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with quiet():
        for number in range(3):
            for name in rotated(list(ways), number):
                seconds[name].append(seconds_per_call(ways[name], 1))
    return {name: compare(times, seconds[base]) for name, times in seconds.items()}


# The tables


def against_the_matrix(report: Report) -> None:
    for name, make in LAYERS.items():
        for n in SIZES:
            ways = steps(*make(n), n)
            memory = {way: peak(run) for way, run in ways.items()}
            timed = few_rounds(ways) if n > 1024 else measure(ways, base="naive", rounds=20)
            report.add(f"{name}, n={n}", timed)
            report.note(f"{'':34}peak MB: {memory['tied']:.1f}, naive {memory['naive']:.1f}")


def crossovers(report: Report) -> None:
    """Fast against the layer's own dense algorithm, at rising sizes."""
    for name, make in LAYERS.items():
        chosen = won = 0
        for n in (64, 128, 256, 512):
            layer, _ = make(n)
            chosen = chosen or (layer.algorithm != "dense" and n)
            x = torch.randn(ROWS, n, requires_grad=True)
            ways = {}
            for algorithm in ("dense", layer.fast):
                forced, _ = make(n)
                forced.algorithm = algorithm
                ways[algorithm] = step(forced, forced, x)
            ratio = measure(ways, base="dense", rounds=20)[layer.fast]
            won = (won or n) if ratio.median < 1 else 0
            report.add(f"{name}, n={n}, fast / dense", {"tied": ratio})
        report.note(f"{name}: fast wins from n={won or 'more than 512'} on; auto takes it from n={chosen}")


def many_rows(report: Report) -> None:
    """Where the choice by size alone loses: thousands of rows pay for building a matrix."""
    for name in ("Toeplitz", "circulant", "Kronecker"):
        for n in (256, 1024):
            x, ways = torch.randn(4096, n, requires_grad=True), {}
            for algorithm in ("dense", "auto"):
                layer, _ = LAYERS[name](n)
                layer.algorithm = algorithm
                ways[layer.algorithm] = step(layer, layer, x)
            fast = next(way for way in ways if way != "dense")
            report.add(f"{name}, n={n}, 4096 rows, fast / dense", {"tied": few_rounds(ways, base="dense")[fast]})


def hashed(n: int) -> tuple[nn.Module, Matrix]:
    layer = HashedLinear(n, n, n * n // 16)
    index, signs = layer.index % layer.buckets, 1.0 - 2.0 * (layer.index >= layer.buckets)
    return layer, lambda m: m.theta[index] * signs


def orbit(n: int) -> tuple[nn.Module, Matrix]:
    side = round(n**0.5)
    layer = OrbitLinear([torch.arange(n).reshape(side, side).rot90().flatten()])
    return layer, lambda m: m.theta[m.index]


def codebook(n: int, values: int) -> tuple[nn.Module, Matrix]:
    layer = CodebookLinear(n, n, values)
    index = layer.codes.long()
    return layer, lambda m: m.theta[index]


def symmetric(n: int) -> tuple[nn.Module, Matrix]:
    layer = SymmetricLinear(n)
    return layer, lambda m: m.theta[m.index]


MAPS = {
    "hashed 16×, n=256": (hashed, 256),
    "hashed 16×, n=512": (hashed, 512),
    "hashed 16×, n=1024": (hashed, 1024),
    "hashed 16×, n=2048": (hashed, 2048),
    "codebook 16, n=1024": (partial(codebook, values=16), 1024),
    "codebook 256, n=1024": (partial(codebook, values=256), 1024),
    "orbits of C4, n=1024": (orbit, 1024),
    "symmetric, n=1024": (symmetric, 1024),
}


def index_maps(report: Report) -> None:
    """Measure each in a process of its own, which keeps the memory it got: fetching it anew is most of the noise."""
    os.environ |= {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**32)}
    for name in MAPS:
        with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
            found = fresh.submit(index_map, name).result()
        for case, ratios in found.items():
            report.add(case, ratios)


def index_map(name: str) -> dict[str, dict[str, Ratio]]:
    """Compare a whole layer, and its matrix alone, with the naive way."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    make, n = MAPS[name]
    layer, matrix = make(n)
    ways, none = steps(layer, matrix, n, rows=64), torch.zeros((), requires_grad=True)
    dense = nn.Linear(n, n)
    ways["dense, unshared"] = step(dense, dense, torch.randn(64, n, requires_grad=True))
    alone = {
        "tied": step(lambda _: layer.build(), layer, none),
        "naive": step(lambda _: matrix(layer), layer, none),
    }
    whole = measure(ways, base="naive", rounds=20)
    return {name: whole, f"{name}, matrix only": measure(alone, base="naive", rounds=20)}


def main() -> None:
    """Measure all tables and judge the budgets."""
    path = json_path(__doc__)
    torch.manual_seed(0)
    report = Report(f"Time of forward and backward, divided by that of building the matrix; {ROWS} rows")
    against_the_matrix(report)
    crossovers(report)
    many_rows(report)
    index_maps(report)
    for name in LAYERS:
        for n, most in ((1024, 1 / 5), (4096, 1 / 25)):
            report.budget(f"{name}, n={n}", found=report.ratio(f"{name}, n={n}", "tied"), at_most=most)
    for name in [f"{name}{part}" for name in MAPS for part in (", matrix only", "")]:
        report.budget(name, found=report.ratio(name, "tied"), at_most=0.55)
    report.write(path)


if __name__ == "__main__":
    main()
