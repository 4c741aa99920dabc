"""The demo's pictures, from its findings.

Owns: what each picture shows and what its title says. Must not draw: `tied.show` does. Read next: `report.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch

from tied.show import panels, pictures
from tied.show.panels import FilterPair, Panel
from tied.show.pictures import Curve
from tied.study.demo.record import DRIFTED, Record, Run
from tied.study.recipes import COPY_HOOK, SECOND_PARAMETER, TIED, UNTIED

SAME_CURVE = 1e-3
"""Curves that stay within this relative distance in every epoch are drawn as one."""
SHAPE = (-1, 1, 8, 8)
CAPTIONS = {
    "filters.png": "Filters: rows of the encoder's weight, columns of the decoder's, and their difference",
    "reconstructions.png": "Held-out digits and their reconstructions",
    "loss.png": "Held-out error over the epochs",
}


def gallery(record: Record) -> dict[str, bytes]:
    """Draw what can be drawn from the finished runs.

    Returns:
        PNG bytes by file name; without any finished run, nothing.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    drawn = {name: draw(record) for name, draw in DRAWINGS.items()}
    return {name: picture for name, picture in drawn.items() if picture}


def _runs(record: Record, *names: str) -> list[Run]:
    found = (record.first_run(name) for name in names)
    return [run for run in found if run]


def draw_filters(record: Record) -> bytes:
    """Draw the filters of tied, of a cut tie and of untied, with the differences."""
    pairs = [_filters(run) for run in _runs(record, TIED.name, DRIFTED, UNTIED.name)]
    if not pairs:
        return b""
    exact = [pair for pair in pairs if pair.largest_difference == 0]
    title = "Tied: the decoder's filters are the encoder's, not merely alike" if exact else "Filters"
    return panels.filters(pairs, title, columns=4)


def _filters(run: Run) -> FilterPair:
    encoder, decoder = (weight.reshape(SHAPE).numpy() for weight in (run.parts.weight, run.parts.decoder_weight.t()))
    return FilterPair(run.recipe.replace(", ", ",\n"), encoder, decoder)


def draw_reconstructions(record: Record) -> bytes:
    """Draw ten held-out digits and what the models make of them."""
    runs = _runs(record, TIED.name, UNTIED.name, SECOND_PARAMETER.name, COPY_HOOK.name)
    if not runs:
        return b""
    rows = [_dark_on_white("held-out originals", runs[0].sample.images)]
    for run in runs:
        label = f"{run.recipe}\nerror ×10³ {run.held_out_error * 1000:.2f}"
        rows.append(_dark_on_white(label, run.reconstructions))
    compared = f": tied has an error {record.price()} than untied" if record.price() else ""
    return panels.samples(rows, f"Held-out digits and what the models make of them{compared}")


def _dark_on_white(label: str, images: torch.Tensor) -> Panel:
    return Panel(label, (1 - images).reshape(SHAPE).numpy())


def draw_curves(record: Record) -> bytes:
    """Draw the held-out error of every recipe, those with the same curve as one."""
    groups = _same_curves(_runs(record, *record.properties))
    lines = [Curve(_names(group), _errors(group[0])) for group in groups]
    if not lines:
        return b""
    alike = max(groups, key=len)
    title = "All from the same start"
    if len(alike) > 1 and TIED.name in [run.recipe for run in alike]:
        title = f"{len(alike)} recipes train alike from the same start; the others do not"
    return pictures.curves(lines, title, ylabel="held-out error ×10³")


def _errors(run: Run) -> list[float]:
    return [epoch.held_out_error * 1000 for epoch in run.epochs]


def _same_curves(runs: list[Run]) -> list[list[Run]]:
    """Put runs together whose held-out errors agree in every epoch."""
    groups: list[list[Run]] = []
    for run in runs:
        home = next((group for group in groups if _same(run, group[0])), None)
        if home is None:
            groups.append([run])
        else:
            home.append(run)
    return groups


def _same(run: Run, other: Run) -> bool:
    return np.allclose(_errors(run), _errors(other), rtol=SAME_CURVE, atol=0)


def _names(group: list[Run]) -> str:
    names = [run.recipe for run in group]
    return "\n".join(", ".join(names[index : index + 2]) for index in range(0, len(names), 2))


DRAWINGS: Mapping[str, Callable[[Record], bytes]] = {
    "filters.png": draw_filters,
    "reconstructions.png": draw_reconstructions,
    "loss.png": draw_curves,
}
