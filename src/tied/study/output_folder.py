"""The folder of a study's results: JSON, a page and pictures.

Owns: how files get there: whole or not at all, pictures last. Must not know what they say or show.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tied.reporting.page import Heading, Part, Picture

RESULTS, REPORT = "results.json", "report.html"


def prepare(folder: Path) -> None:
    """Create `folder` and make sure that files can be written there.

    Raises:
        OSError: It is a file, or cannot be created or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


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


def write_json(path: Path, values: Mapping[str, Any]) -> Path:
    """Write plain values as a whole file."""
    return write_whole(path, (json.dumps(values, indent=2) + "\n").encode())


def write_results(folder: Path, values: Mapping[str, Any], page: str, pictures: Iterable[str]) -> list[Path]:
    """Write `results.json` and a page without pictures; quick, so that nothing is lost.

    `pictures` of an earlier run are removed: they would not show these results.
    """
    for name in pictures:
        (folder / name).unlink(missing_ok=True)
    return [write_json(folder / RESULTS, values), write_whole(folder / REPORT, page.encode())]


def write_pictures(folder: Path, drawn: Mapping[str, bytes], page: str) -> list[Path]:
    """Write the pictures, and the page anew, now with the pictures in it."""
    paths = [write_whole(folder / name, picture) for name, picture in drawn.items()]
    write_whole(folder / REPORT, page.encode())
    return paths


def illustrations(drawn: Mapping[str, bytes], captions: Mapping[str, str]) -> Iterator[Part]:
    """Put each picture under its caption."""
    for name, png in drawn.items():
        yield from (Heading(captions[name]), Picture(png, captions[name]))
