"""Looking at a live model: how long `tied.check` takes as the number of names grows, beside other finders.

A stack of small linear layers, of which some weights are those of the layer before (one Parameter in two slots), every
hundredth is a view of it (two Parameters over one memory), and the rest are separate. The cases differ in how many are
tied, for accelerate's finder takes (tied names × other names) comparisons, and the others do not.

`tied groups` is what corresponds to the others: which names share. accelerate and lightning find what is one object,
safetensors what lies in one storage (a transposed view makes it raise, so the views here are not), and `tied` compares
bytes over strides. `tied.check` looks for equal values, for declarations and for what sharing means besides. `bare
walk` is the least that a finder in Python can do with torch's own means: `named_parameters`, and one address of each.

Each figure is processor time of one thread, the least of a few interleaved calls: what else runs on the machine only
adds to it. Each model is made in a process of its own: in one with memory in pieces all ways take 1.4 times as long.

    python benchmarks/check_model.py --json benchmarks/results/check_model.json
"""

import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ratio import Report, json_path, quiet
from torch import nn

import tied
from tied.checking.groups import groups

MOST = 50_000
SIZES = (100, 1_000, 10_000, MOST)
ROUNDS = 7
SLOW = 5.0  # seconds; what takes longer is called once
SPARSE = "a twentieth of the weights"
CASES = {  # which layers hold what the layer before holds: every how many, and which of its Parameters
    SPARSE: (20, ("weight",)),
    "a twentieth of all names": (20, ("weight", "bias")),
    "half of the weights": (2, ("weight",)),
    "half of all names": (2, ("weight", "bias")),
}

Finder = Callable[[nn.Module], Any]


class Stack(nn.Module):
    """Layers with two names each."""

    def __init__(self, names: int, every: int, shared: tuple[str, ...] = ("weight",)) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(names // 2))
        for index in range(1, names // 2, every):
            for name in shared:
                setattr(self.layers[index], name, getattr(self.layers[index - 1], name))
        for index in range(11, names // 2, 100):
            weight = self.layers[index - 1].get_parameter("weight")
            self.layers[index].weight = nn.Parameter(weight.view(8, 8))


def bare_walk(model: nn.Module) -> list[int]:
    """Return the address of everything that has a name."""
    return [tensor.data_ptr() for _, tensor in model.named_parameters(remove_duplicate=False)]


def finders() -> dict[str, Finder]:
    """Return ours, and those of the others that are installed."""
    found: dict[str, Finder] = {"tied.check": tied.check, "tied groups": groups, "bare walk": bare_walk}
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
    """Seconds of each finder in one case."""

    case: str
    names: int
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def least(self, finder: str) -> float:
        return min(self.seconds[finder])

    def line(self) -> str:
        cells = (f"{self.least(finder) * 1e3:11.2f} ms" for finder in self.seconds)
        return f"{self.names:>8}" + "".join(f"{cell:>15}" for cell in cells) + f"   {self.case}"


def measure(case: str, names: int) -> Times:
    """Call every finder in turn, and again."""
    times, model = Times(case, names), Stack(names, *CASES[case])
    with quiet():
        for number in range(ROUNDS + 1):
            for finder, way in finders().items():
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


def kept(report: Report, case: str, names: int) -> Times:
    """Measure in a process of its own, print the times and keep them."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        times = pool.apply(measure, (case, names))
    print(times.line(), flush=True)
    report.rows += [
        {"names": names, "case": case, "way": way, "milliseconds": times.least(way) * 1e3} for way in times.seconds
    ]
    return times


def main() -> None:
    path, ways = json_path(__doc__), finders()
    report = Report("Looking at a model with shared weights: least processor time, by number of names and what is tied")
    print(f"{report.title}\n{'names':>8}" + "".join(f"{finder:>15}" for finder in ways))
    by_size = {size: kept(report, SPARSE, size) for size in SIZES}
    by_case = {case: by_size[MOST] if case == SPARSE else kept(report, case, MOST) for case in CASES}
    for case, times in by_case.items():
        report.budget(f"seconds of tied.check, 50,000 names, {case} tied", found=times.least("tied.check"), at_most=0.2)
    growth = by_size[MOST].least("tied.check") / by_size[10_000].least("tied.check")
    report.budget("growth of tied.check, 10,000 to 50,000 names", found=growth, at_most=5 * 1.5)
    for case, times in by_case.items() if "accelerate" in ways else ():
        beside_accelerate(report, case, times)
    report.note("The others do not see views: accelerate and lightning find one object, safetensors one storage.")
    report.write(path)


def beside_accelerate(report: Report, case: str, times: Times) -> None:
    """Hold `tied groups` to a fiftieth of accelerate's time, where the bare walk leaves room for that."""
    other, floor = times.least("accelerate"), times.least("bare walk")
    share = times.least("tied groups") / other
    if floor < other / 50:
        report.budget(f"time of tied groups / accelerate's, {case} of 50,000 tied", found=share, at_most=1 / 50)
    else:
        report.note(
            f"Of accelerate's time, {case} of 50,000 tied: tied groups take 1/{1 / share:.0f}, and the bare walk alone "
            f"1/{other / floor:.0f}, so that none that asks torch for the names takes 1/50."
        )


if __name__ == "__main__":
    main()
