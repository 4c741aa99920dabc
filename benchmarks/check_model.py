"""Looking at a live model: how long `tied.check` takes as the number of names grows, beside other finders.

A stack of small linear layers; of its weights every twentieth (or every second) is that of the layer before (one
Parameter in two slots), every hundredth is a view of it (two Parameters over one memory), and the rest are separate.
The others find what is one object; safetensors also what lies in one storage (a transposed view makes it raise, so the
views here are not). `tied` compares bytes over strides, and `check` looks for equal values, for declarations and for
what sharing means besides.

Each figure is processor time of one thread, the least of a few interleaved calls: what else runs on the machine only
adds to it.

    python benchmarks/check_model.py --json benchmarks/results/check_model.json
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ratio import Report, json_path, quiet
from torch import nn

import tied
from tied.checking.groups import groups

SIZES = (100, 1_000, 10_000, 50_000)
ROUNDS = 7
SLOW = 5.0  # seconds; what takes longer is called once

Finder = Callable[[nn.Module], Any]


class Stack(nn.Module):
    """Layers with two names each."""

    def __init__(self, names: int, every: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(names // 2))
        for index in range(1, names // 2, every):
            self.layers[index].weight = self.layers[index - 1].weight
        for index in range(11, names // 2, 100):
            self.layers[index].weight = nn.Parameter(self.layers[index - 1].weight.view(8, 8))


def finders() -> dict[str, Finder]:
    """Return ours, and those of the others that are installed."""
    found: dict[str, Finder] = {"tied.check": tied.check, "tied groups": groups}
    try:
        from accelerate.utils import find_tied_parameters

        found["accelerate"] = find_tied_parameters
    except ImportError:
        pass
    from safetensors.torch import _find_shared_tensors

    found["safetensors"] = lambda model: _find_shared_tensors(model.state_dict())
    try:
        from lightning.pytorch.utilities import find_shared_parameters

        found["lightning"] = find_shared_parameters
    except ImportError:
        pass
    return found


@dataclass
class Times:
    """Seconds of each finder at one size."""

    names: int
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def least(self, finder: str) -> float:
        return min(self.seconds[finder])

    def line(self) -> str:
        cells = (f"{self.least(finder) * 1e3:12.2f} ms" for finder in self.seconds)
        return f"{self.names:>8}" + "".join(f"{cell:>18}" for cell in cells)


def measure(names: int, ways: dict[str, Finder], *, every: int = 20) -> Times:
    """Call every finder in turn, and again."""
    times, model = Times(names), Stack(names, every)
    with quiet():
        for number in range(ROUNDS + 1):
            for finder, way in ways.items():
                known = times.seconds.setdefault(finder, [])
                if known and min(known) > SLOW:
                    continue
                taken = seconds(partial(way, model))
                if number or taken > SLOW:  # the first call warms up
                    known.append(taken)
    return times


def seconds(call: Callable[[], Any]) -> float:
    begin = time.process_time()
    call()
    return time.process_time() - begin


def main() -> None:
    path, ways = json_path(__doc__), finders()
    report = Report("Looking at a model with shared weights: least processor time, by number of names")
    print(f"{report.title}\n{'':8}" + "".join(f"{finder:>18}" for finder in ways))
    found = {}
    for names in SIZES:
        found[names] = times = measure(names, ways)
        print(times.line(), flush=True)
        rows = [{"case": str(names), "way": w, "milliseconds": times.least(w) * 1e3} for w in ways]
        report.rows += rows
    dense = measure(SIZES[-1], ways, every=2)
    print(f"{dense.line()}   (half of the weights tied)", flush=True)
    report.rows += [{"case": "half tied", "way": w, "milliseconds": dense.least(w) * 1e3} for w in ways]
    most, fewer = found[SIZES[-1]], found[SIZES[-2]]
    report.budget("seconds of tied.check, 50,000 names", found=most.least("tied.check"), at_most=0.2)
    growth = most.least("tied.check") / fewer.least("tied.check")
    report.budget("growth of tied.check, 10,000 to 50,000 names", found=growth, at_most=5 * 1.5)
    if "accelerate" in ways:
        for case, times in (("a twentieth", most), ("half", dense)):
            share = times.least("tied.check") / times.least("accelerate")
            report.budget(f"time of tied.check / accelerate's, {case} of 50,000 tied", found=share, at_most=1 / 50)
    report.note("The others do not see views: accelerate and lightning find one object, safetensors one storage.")
    report.write(path)


if __name__ == "__main__":
    main()
