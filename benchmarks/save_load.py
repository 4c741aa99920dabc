"""Saving and loading a tied model costs what safetensors costs for the unique tensors.

Two subjects: a language model whose head is its embedding (221 MB once, 442 MB twice), and 2,000 small tensors in pairs
of which every second one is tied. Each is saved and loaded by `tied`, by safetensors' `save_file` and `load_file` with
the unique tensors as a dict, by its `save_model` and `load_model` on the plainly shared model, and by torch. What
is loaded is compared with what was saved before anything is timed.

The main figure is processor time: waiting for a disk is the same for all, and this machine's is not yours. `tied.save`
also waits until the bytes are on the disk (fsync), which none of the others does: "wall" shows what that costs.

    python benchmarks/save_load.py --json benchmarks/results/save_load.json
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ratio import Report, Way, compare, json_path, quiet, rotated
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import nn

import tied

ROUNDS = 15


def language_model(words: int = 50_000, width: int = 1_104) -> nn.Module:
    """An embedding of 221 MB and a head of the same size."""
    model = nn.ModuleDict({"embed": nn.Embedding(words, width), "norm": nn.LayerNorm(width)})
    model["head"] = nn.Linear(width, words, bias=False)
    return model


def many_small(count: int = 2_000) -> nn.Module:
    """Small layers in pairs: an encoder and a decoder each, without biases."""
    return nn.ModuleList(nn.Linear(16, 16, bias=False) for _ in range(count))


def tie_language_model(model: nn.Module) -> None:
    tied.tie(model, "head.weight", "embed.weight")


def share_language_model(model: Any) -> None:
    model.head.weight = model.embed.weight


def tie_many(model: Any) -> None:
    tied.tie(model, {f"{number}.weight": f"{number - 1}.weight" for number in range(1, len(model), 2)})


def share_many(model: Any) -> None:
    for number in range(1, len(model), 2):
        model[number].weight = model[number - 1].weight


SUBJECTS: dict[str, tuple[Callable[[], nn.Module], Callable[[Any], None], Callable[[Any], None]]] = {
    "221 MB, one tie": (language_model, tie_language_model, share_language_model),
    "2,000 small tensors, 1,000 ties": (many_small, tie_many, share_many),
}


def built(make: Callable[[], nn.Module], share: Callable[[Any], None]) -> nn.Module:
    torch.manual_seed(0)
    model = make()
    share(model)
    return model


def savers(ours: nn.Module, plain: nn.Module, folder: Path) -> dict[str, Way]:
    """Return the ways to save; each has a file of its own."""
    unique = dict(ours.state_dict())
    return {
        "save_file, unique": lambda: save_file(unique, folder / "unique.safetensors"),
        "tied.save": lambda: tied.save(ours, folder / "ours.safetensors"),
        "tied.save, plain sharing": lambda: tied.save(plain, folder / "plain.safetensors"),
        "save_model": lambda: save_model(plain, str(folder / "model.safetensors")),
        "torch.save": lambda: torch.save(plain.state_dict(), folder / "model.pt"),
    }


def loaders(ours: nn.Module, plain: nn.Module, folder: Path) -> dict[str, Way]:
    """Return the ways to load into a model that is there already."""
    return {
        "load_file + load_state_dict": lambda: ours.load_state_dict(load_file(folder / "unique.safetensors")),
        "tied.load": lambda: tied.load(ours, folder / "ours.safetensors"),
        "tied.load, plain sharing": lambda: tied.load(plain, folder / "plain.safetensors"),
        "load_model": lambda: load_model(plain, folder / "model.safetensors"),
        "torch.load + load_state_dict": lambda: plain.load_state_dict(
            torch.load(folder / "model.pt", weights_only=True)
        ),
    }


def assigners(ours: nn.Module, folder: Path) -> dict[str, Way]:
    """Return the ways that copy nothing: the file is mapped."""
    return {
        "load_file alone": lambda: load_file(folder / "unique.safetensors"),
        "load_file + assign": lambda: ours.load_state_dict(load_file(folder / "unique.safetensors"), assign=True),
        "tied.load, assign": lambda: tied.load(ours, folder / "ours.safetensors", assign=True),
        "tied.files.load_file": lambda: tied.files.load_file(folder / "ours.safetensors"),
    }


def alternate(ways: dict[str, Way], clock: Callable[[], int]) -> dict[str, list[float]]:
    """Call each way once a round, in changing order; return the seconds."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with quiet():
        for way in ways.values():
            way()
        for number in range(ROUNDS):
            for name in rotated(list(ways), number):
                begin = clock()
                ways[name]()
                seconds[name].append((clock() - begin) / 1e9)
    return seconds


def check(ours: nn.Module, plain: nn.Module, folder: Path) -> None:
    """See that every way to load brings back what was saved."""
    expected = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    for model, way in [(ours, w) for w in list(loaders(ours, plain, folder).values())[:2]] + [
        (plain, w) for w in list(loaders(ours, plain, folder).values())[2:]
    ]:
        for parameter in model.parameters():
            nn.init.zeros_(parameter)
        way()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def main() -> None:
    """Measure both subjects, saving, loading and assigning."""
    path = json_path(__doc__)
    report = Report("Time divided by that of safetensors for the unique tensors")
    for subject, (make, tie, share) in SUBJECTS.items():
        ours, plain = built(make, tie), built(make, share)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for way in savers(ours, plain, folder).values():
                way()
            check(ours, plain, folder)
            for verb, ways in (("save", savers), ("load", loaders)):
                chosen = ways(ours, plain, folder)
                base = next(iter(chosen))
                for word, clock in (("processor", time.process_time_ns), ("wall", time.perf_counter_ns)):
                    seconds = alternate(chosen, clock)
                    found = {way: compare(times, seconds[base]) for way, times in seconds.items()}
                    report.add(f"{subject}, {verb}, {word}", found)
            chosen = assigners(ours, folder)
            seconds = alternate(chosen, time.process_time_ns)
            found = {way: compare(times, seconds["load_file alone"]) for way, times in seconds.items()}
            report.add(f"{subject}, assign, processor", found)
    large, small = SUBJECTS
    report.budget(
        "tied.save / save_file, 221 MB", found=report.ratio(f"{large}, save, processor", "tied.save"), at_most=1.05
    )
    report.budget(
        "tied.load / load_file, 221 MB", found=report.ratio(f"{large}, load, processor", "tied.load"), at_most=1.05
    )
    for verb, ours, theirs in (
        ("save", "tied.save, plain sharing", "save_model"),
        ("load", "tied.load, plain sharing", "load_model"),
    ):
        case = f"{small}, {verb}, processor"
        report.budget(
            f"{ours} / {theirs}, 2,000 small", found=report.ratio(case, ours) / report.ratio(case, theirs), at_most=1.0
        )
    report.write(path)


if __name__ == "__main__":
    main()
