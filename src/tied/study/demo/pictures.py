"""The demo's pictures, from its findings.

Owns: what each picture shows and what its title says. Must not draw: `tied.show.pictures` does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from tied.show import pictures
from tied.show.pictures import Curve, FilterPair, ImageRow
from tied.study.demo.record import DRIFTED, Record, Run
from tied.study.demo.tables import price
from tied.study.recipes import COPY_HOOK, SECOND_PARAMETER, TIED, UNTIED

SAME_CURVE = 1e-3
"""Curves that stay within this relative distance in every epoch are drawn as one."""


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
    pairs = [_pair(run) for run in _runs(record, TIED.name, DRIFTED, UNTIED.name)]
    if not pairs:
        return b""
    exact = [pair for pair in pairs if pair.largest_difference == 0]
    title = "Tied: the decoder's filters are the encoder's, not merely alike" if exact else "Filters"
    return pictures.filters(pairs, title)


def _pair(run: Run) -> FilterPair:
    name = run.recipe.replace(", ", ",\n")
    return FilterPair(name, run.parts.weight.numpy(), run.parts.decoder_weight.t().numpy())


def draw_reconstructions(record: Record) -> bytes:
    """Draw ten held-out digits and what the models make of them."""
    runs = _runs(record, TIED.name, UNTIED.name, SECOND_PARAMETER.name, COPY_HOOK.name)
    if not runs:
        return b""
    rows = [ImageRow("held-out originals", runs[0].sample.images.numpy())]
    rows += [ImageRow(_label(run), run.reconstructions.numpy()) for run in runs]
    compared = f": tied has an error {price(record)} than untied" if price(record) else ""
    return pictures.image_rows(rows, f"Held-out digits and what the models make of them{compared}")


def _label(run: Run) -> str:
    return f"{run.recipe}\nerror ×10³ {run.held_out_error * 1000:.2f}"


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
