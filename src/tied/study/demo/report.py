"""The demo's results in a folder.

Owns: which files there are and how they get there: whole or not at all. Must not measure or draw.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tied.reporting.page import Code, Heading, Paragraph, Part, Picture, page
from tied.study.demo.pictures import gallery
from tied.study.demo.record import Record
from tied.study.demo.tables import results, sentences
from tied.study.digits import CREDIT
from tied.study.recipes import ALL
from tied.study.reference import HIDDEN

RESULTS, REPORT = "results.json", "report.html"
CAPTIONS = {
    "filters.png": "Filters: rows of the encoder's weight, columns of the decoder's, and their difference",
    "reconstructions.png": "Held-out digits and their reconstructions",
    "loss.png": "Held-out error over the epochs",
}


def prepare(folder: Path) -> None:
    """Create `folder` and make sure that files can be written there.

    Raises:
        OSError: It is a file, or cannot be created or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def write_data(record: Record, folder: Path) -> list[Path]:
    """Write `results.json` and a page without pictures; quick, so that nothing is lost.

    Pictures of an earlier run are removed: they would not show these results.
    """
    for name in CAPTIONS:
        (folder / name).unlink(missing_ok=True)
    text = json.dumps(record.to_json(), indent=2) + "\n"
    return [write_whole(folder / RESULTS, text.encode()), write_whole(folder / REPORT, report(record, {}).encode())]


def write_pictures(record: Record, folder: Path) -> list[Path]:
    """Write the pictures, and the page anew with the pictures in it.

    Raises:
        MissingPackageError: matplotlib is not installed; nothing was written.
    """
    drawn = gallery(record)
    paths = [write_whole(folder / name, picture) for name, picture in drawn.items()]
    write_whole(folder / REPORT, report(record, drawn).encode())
    return paths


def write_whole(path: Path, content: bytes) -> Path:
    """Put a whole file in place at once; an interruption leaves the old file or none."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def report(record: Record, drawn: Mapping[str, bytes]) -> str:
    """Write the findings as one self-contained HTML page."""
    return page("Ten ways to tie an autoencoder", _parts(record, drawn))


def _parts(record: Record, drawn: Mapping[str, bytes]) -> list[Part]:
    pictures = [(Heading(CAPTIONS[name]), Picture(png, CAPTIONS[name])) for name, png in drawn.items()]
    return [
        Paragraph(_introduction(record)),
        results(record),
        *(Paragraph(sentence) for sentence in sentences(record)),
        *(part for pair in pictures for part in pair),
        Heading("What people write"),
        Code("\n".join(f"{recipe.name:20} {recipe.line}" for recipe in ALL)),
        Paragraph(f"Data: {CREDIT}."),
    ]


def _introduction(record: Record) -> str:
    plan = record.plan
    last = "Interrupted: this is what was finished." if record.interrupted else "Every figure is from this run."
    return (
        f"A 64-{HIDDEN}-64 autoencoder on 1797 handwritten digits, every recipe from the same start: "
        f"{plan.epochs} epochs, {plan.seeds} seeds from {plan.seed}, {record.elapsed_seconds:.0f} s. {last}"
    )
