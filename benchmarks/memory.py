"""How much memory a step needs: what torch's allocator hands out, counted by the byte.

The profiler writes down every allocation and release of the CPU allocator in its order; the highest sum of them,
from the first call on, is the peak above what was there before. It does not depend on the machine, on other
processes or on what the system makes of freed pages, so that it is the same each time. The resident memory of a
fresh process (`ru_maxrss`) is less steady, and is shown beside it as a check.

    python benchmarks/memory.py     # known allocations, by both measures
"""

import multiprocessing
import resource
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from ratio import Report, json_path
from torch.profiler import ProfilerActivity, profile

MB = 2**20


def peak_megabytes(step: Callable[[], Any]) -> float:
    """Return the most memory that `step` holds at any time above what was held before, in units of 2**20 bytes."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    profiler: Any = profiled.profiler
    events = profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return max(accumulate((size for _, size in changes), initial=0)) / MB


def resident_megabytes(build: Callable[[], Callable[[], Any]]) -> float:
    """Return by how much the peak of resident memory grows in `build()()`, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_growth, (build,))


def _growth(build: Callable[[], Callable[[], Any]]) -> float:
    torch.set_num_threads(1)
    step = build()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def one_after_the_other() -> None:
    """Hold 16 MB, then 16 MB and 8 MB, then nothing: 24 MB at the peak."""
    first = torch.ones(4 * MB)
    second = torch.ones(2 * MB)
    del first, second


def build_one_after_the_other() -> Callable[[], None]:
    return one_after_the_other


def main() -> None:
    """Measure known allocations."""
    path = json_path(__doc__)
    report = Report("Peak memory in MB of a function that holds 24 MB")
    counted, resident = peak_megabytes(one_after_the_other), resident_megabytes(build_one_after_the_other)
    report.note(f"counted by the allocator {counted:.1f}, resident {resident:.1f}")
    report.budget("error of the allocator's count, MB", found=abs(counted - 24), at_most=0.1)
    report.write(path)


if __name__ == "__main__":
    main()
