"""The pictures of a training, from its runs.

Owns: what each picture shows and what its title says. Must not draw: `tied.show` does.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from tied.show import panels, pictures
from tied.show.panels import FilterPair, Panel, Points
from tied.show.pictures import Curve
from tied.study.train.autoencoder import Autoencoder, AutoencoderTask
from tied.study.train.loop import Run
from tied.study.train.task import generator

SHOWN = 10

CAPTIONS = {
    "filters.png": "Filters: what the first layer looks for, what the last one writes, and their difference",
    "reconstructions.png": "Held-out samples and their reconstructions",
    "codes.png": "Codes of held-out samples, on their two principal axes",
    "loss.png": "The figures over the epochs",
}


def gallery(runs: Sequence[Run]) -> dict[str, bytes]:
    """Draw what can be drawn from finished runs: PNG bytes by file name.

    Raises:
        MissingPackageError: matplotlib is not installed (the error of `tied.show.pictures`).
    """
    drawn = {name: draw(first_of_each(runs) if name != "loss.png" else runs) for name, draw in DRAWINGS.items()}
    return {name: picture for name, picture in drawn.items() if picture}


def first_of_each(runs: Sequence[Run]) -> list[Run]:
    """Return the first run of tied and of untied."""
    return list({run.plan.tie: run for run in reversed(runs)}.values())[::-1]


def draw_filters(runs: Sequence[Run]) -> bytes:
    """Draw the first layer's weights, the last one's, and their difference."""
    models = [(run.plan.word, run.model) for run in runs if isinstance(run.model, Autoencoder)]
    pairs = [FilterPair(word, *(weight.numpy() for weight in model.filters())) for word, model in models]
    return (
        panels.filters(pairs, "Filters of the first layer and of the last, one for each hidden unit") if pairs else b""
    )


@torch.no_grad()
def draw_reconstructions(runs: Sequence[Run]) -> bytes:
    """Draw held-out samples, what the models were shown of them, and what they made of it."""
    shown: list[Panel] = []
    for run in runs:
        if not isinstance(run.task, AutoencoderTask):
            return b""
        clean = run.task.held_out[:SHOWN]
        inputs = run.task.inputs(run.task.held_out, generator("noise", run.plan.seed, "held out"))[:SHOWN]
        if not shown:
            shown += [Panel("held out", clean.numpy())]
            shown += [Panel("as shown", inputs.numpy())] if run.task.plan.denoise else []
        shown.append(Panel(f"{run.plan.word}\nerror {run.held_out:.3g}", run.model(inputs).numpy()))
    return panels.samples(shown, "Held-out samples and what the models make of them") if shown else b""


@torch.no_grad()
def draw_codes(runs: Sequence[Run]) -> bytes:
    """Draw the codes of held-out samples on their two principal axes, by label."""
    clouds: list[Points] = []
    for run in runs:
        if isinstance(run.model, Autoencoder) and isinstance(run.task, AutoencoderTask):
            codes = run.model.encode(run.task.held_out).double().numpy()
            samples = run.task.shown
            clouds.append(Points(run.plan.word, principal_plane(codes), samples.labels.numpy(), samples.names))
    return panels.planes(clouds, "Codes of held-out samples, principal plane") if clouds else b""


def principal_plane(codes: np.ndarray) -> np.ndarray:
    """Project codes `(count, code)` on their two directions of largest variance; a missing one is zero."""
    centered = codes - codes.mean(0)
    directions = np.linalg.svd(centered, full_matrices=False)[2][:2]
    plane = centered @ directions.T
    return np.pad(plane, ((0, 0), (0, 2 - plane.shape[1])))


def draw_curves(runs: Sequence[Run]) -> bytes:
    """Draw the figures over the epochs, as means over the seeds; one epoch makes no curve."""
    if min(len(run.epochs) for run in runs) < 2:
        return b""
    name = runs[0].task.figure_name
    lines = [line for run in first_of_each(runs) for line in _curves(run, runs)]
    seeds = len({run.plan.seed for run in runs})
    title = f"{name.capitalize()} over the epochs" + (f", mean of {seeds} seeds" if seeds > 1 else "")
    return pictures.curves(lines, title, ylabel=name)


def _curves(one: Run, runs: Sequence[Run]) -> list[Curve]:
    """Return the curves of all runs that are tied as this one."""
    alike = [run.epochs for run in runs if run.plan.tie == one.plan.tie]
    together = list(zip(*alike, strict=False))  # with patience, runs may end at different epochs
    held_out = [statistics.fmean(epoch.held_out for epoch in epochs) for epochs in together]
    training = [statistics.fmean(epoch.training for epoch in epochs) for epochs in together]
    return [Curve(f"{one.plan.word}, held out", held_out), Curve(f"{one.plan.word}, in training", training)]


DRAWINGS: Mapping[str, Callable[[Sequence[Run]], bytes]] = {
    "filters.png": draw_filters,
    "reconstructions.png": draw_reconstructions,
    "codes.png": draw_codes,
    "loss.png": draw_curves,
}
