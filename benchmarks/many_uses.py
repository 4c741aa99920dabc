"""One weight used many times costs less when its gradients are added up in one buffer.

A square layer of width d is applied k times to a state of few or many rows, as in a loop or an unrolled cell, and
the gradient is taken: with `F.linear` (what `nn.Linear` does), with `tied.nn.shared_linear`, and with the same made to
gather always, so that one sees what its rule avoids. Gradients are compared before anything is timed. Memory is
counted by `memory.py`.

    python benchmarks/many_uses.py --json benchmarks/results/many_uses.json
"""

from collections.abc import Callable
from typing import Any

import torch
from memory import peak_megabytes
from ratio import Report, json_path, measure
from torch import Tensor, nn
from torch.nn import functional

from tied.nn.accumulate import gathered_linear, shared_linear

Linear = Callable[[Tensor, Tensor, Tensor], Tensor]

WAYS: dict[str, Linear] = {"F.linear": functional.linear, "shared_linear": shared_linear, "always": gathered_linear}
LARGE = (4096, 8, 12)
CASES = [  # width, rows of each use, uses, rounds
    (256, 8, 12, 15),
    (1024, 8, 1, 25),
    (1024, 8, 2, 15),
    (1024, 8, 12, 9),
    (1024, 64, 12, 7),
    (1024, 512, 12, 3),
    (2048, 8, 12, 5),
    (*LARGE, 5),
    (4096, 64, 4, 3),
]


def build(width: int, rows: int, uses: int) -> tuple[nn.Linear, dict[str, Callable[[], Any]]]:
    """Return a layer, and a step of it in each way."""
    torch.manual_seed(0)
    layer, x = nn.Linear(width, width), torch.randn(rows, width)

    def step(linear: Linear) -> None:
        layer.weight.grad = layer.bias.grad = None
        state = x
        for _ in range(uses):
            state = torch.tanh(linear(state, layer.weight, layer.bias))
        state.sum().backward()

    return layer, {name: lambda way=way: step(way) for name, way in WAYS.items()}


def check(layer: nn.Linear, steps: dict[str, Callable[[], Any]]) -> None:
    """Compare the gradients of all ways with those of the first."""
    gradients: list[Tensor] = []
    for step in steps.values():
        step()
        gradients.append(layer.weight.grad.clone())  # type: ignore[union-attr]
    for gradient in gradients[1:]:
        assert (gradient - gradients[0]).norm() <= 1e-5 * gradients[0].norm()


def peaks(layer: nn.Linear, steps: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Return the peak memory of a step in each way; the gradient does not exist before it."""
    found: dict[str, float] = {}
    for name, step in steps.items():
        layer.weight.grad = layer.bias.grad = None
        found[name] = peak_megabytes(step)
    return found


def main() -> None:
    """Measure all cases, and the memory of the largest."""
    path = json_path(__doc__)
    torch.set_num_threads(1)
    report = Report("Time of forward and backward, divided by that of F.linear")
    slowest = 0.0
    for width, rows, uses, rounds in CASES:
        layer, steps = build(width, rows, uses)
        check(layer, steps)
        case = f"d={width}, {rows} rows, {uses} uses"
        report.add(case, measure(steps, base="F.linear", rounds=rounds, milliseconds=1.0))
        if uses > 1:
            slowest = max(slowest, report.ratio(case, "shared_linear"))
        if (width, rows, uses) == LARGE:
            memory = peaks(layer, steps)
            report.note("peak memory there, MB: " + ", ".join(f"{name} {size:.1f}" for name, size in memory.items()))
            report.budget(f"time, {case}", found=report.ratio(case, "shared_linear"), at_most=0.5)
            report.budget(f"peak memory in MB, {case}; the weight has 64", found=memory["shared_linear"], at_most=70)
    report.budget("slowest case with two uses or more", found=slowest, at_most=1.1)
    report.note("A layer used once pays for what a second use would have saved: 'always' and the row with 1 use.")
    report.write(path)


if __name__ == "__main__":
    main()
