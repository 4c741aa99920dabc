"""From which size on oneDNN multiplies float32 faster than MKL, on this processor: what `tied.nn.products` goes by.

The three products of a linear layer of n inputs and n outputs that sees some rows: the output, the gradient of the
input, and the gradient of the weight, which is also measured when it is added to what is there. The figures depend
on the processor: MKL, which is `torch.mm`, uses half of the width of AMD's, and is at home on Intel's, where
`tied.nn.products` leaves everything to it.

    python benchmarks/products.py --json benchmarks/results/products.json
"""

from collections.abc import Callable
from typing import Any

import torch
from ratio import Report, json_path, measure

from tied.nn import products
from tied.nn.products import add_product, product

WIDTHS, ROWS = (64, 128, 256, 512, 1024, 4096), (1, 8, 32, 64, 256)


def by(library: str, call: Callable[[], Any]) -> Callable[[], None]:
    """Force a library in a call."""

    def forced() -> None:
        before, products.LIBRARY = products.LIBRARY, library
        call()
        products.LIBRARY = before

    return forced


def cases(rows: int, n: int) -> dict[str, Callable[[], Any]]:
    """Return the products of a layer."""
    x, slopes, weight, total = torch.randn(rows, n), torch.randn(rows, n), torch.randn(n, n), torch.zeros(n, n)
    return {
        "output": lambda: product(x, weight.t()),
        "input's gradient": lambda: product(slopes, weight),
        "weight's": lambda: product(slopes.t(), x),
        "weight's, added": lambda: add_product(total, slopes.t(), x),
    }


def chosen(rows: int, n: int) -> bool:
    """Tell whether the library's own choice is oneDNN where MKL is slow."""
    return min(rows, n) >= products.FEWEST_ROWS and rows * n * n >= products.FEWEST_MULTIPLICATIONS


def main() -> None:
    """Measure all sizes; judge the choice by the median of the products of each size."""
    path = json_path(__doc__)
    torch.set_num_threads(1)
    report = Report("Time of products by oneDNN, divided by that of the same by mm")
    worst_taken, best_left = 0.0, 9.0
    for n in WIDTHS:
        for rows in ROWS:
            found = {}
            for name, call in cases(rows, n).items():
                ways = {way: by(way, call) for way in ("mm", "onednn")}
                found[name] = measure(ways, base="mm", rounds=9, milliseconds=2.0)["onednn"]
            taken = chosen(rows, n)
            report.add(f"n={n}, {rows} rows{', taken' if taken else ''}", found)
            middle = sorted(ratio.median for name, ratio in found.items() if name != "weight's, added")[1]
            worst_taken = max(worst_taken, middle) if taken else worst_taken
            best_left = best_left if taken else min(best_left, middle)
    report.budget("slowest of the sizes at which oneDNN is taken, where MKL is slow", found=worst_taken, at_most=1)
    report.note(f"fastest of the sizes at which it is not: {best_left:.2f}")
    report.note(f"MKL is slow here: {products.mkl_is_slow_here()}")
    report.write(path)


if __name__ == "__main__":
    main()
