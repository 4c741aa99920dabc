"""What to say of a subject that is not on this machine: names near it, and how to get it here.

Owns: the words. Must not download, import or open anything: it lists folders. Must not print.
"""

from __future__ import annotations

import difflib
import os
import re
import shlex
from pathlib import Path

MOST_NAMES = 3
HUB_LONGEST = 96
HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
HUB_PAGE = re.compile(r"(?:hf://|https?://(?:www\.)?(?:huggingface\.co|hf\.co)/)(?:models/)?([\w.-]+(?:/[\w.-]+)?)")
HUB_FILE = re.compile(r"/(blob|resolve)/.*\.\w+$")


def exists(path: str | Path) -> bool:
    """Whether something lies there; a text that can be no path leads nowhere."""
    return os.path.exists(path)  # noqa: PTH110 - Path.exists raises where a name is too long


def no_such_file(path: Path) -> str:
    """Say that nothing lies there, and what is near."""
    return f"no such file or folder: {str(path)!r}{near_file(path)}"


def near_file(path: Path) -> str:
    """Return what is near a path that leads nowhere: "; did you mean 'model.safetensors'?", or "".

    Of a path whose folder is missing, the first missing folder is compared with those beside it. Where no name is near
    that of a file, the files with its suffix are listed.
    """
    gone = path
    while gone.parent != gone and not exists(gone.parent):
        gone = gone.parent
    try:
        beside = sorted(each.name for each in gone.parent.iterdir())
    except OSError:
        return ""
    near = difflib.get_close_matches(gone.name, beside, n=MOST_NAMES, cutoff=0.65)
    if near:
        rest = path.relative_to(gone)
        return f"; did you mean {' or '.join(repr(str(gone.with_name(name) / rest)) for name in near)}?"
    alike = [name for name in beside if gone == path and path.suffix and Path(name).suffix == path.suffix]
    more = ", ..." if len(alike) > MOST_NAMES else ""
    return f"; that folder has {', '.join(map(repr, alike[:MOST_NAMES]))}{more}" if alike else ""


def nowhere(text: str) -> str:
    """Say that a subject is no file or folder of this machine, and what to do."""
    if "://" in text:
        return _of_url(text)
    near = near_file(Path(text))
    is_path = "/" in text and exists(Path(text).parent)
    if near or is_path or len(text) > HUB_LONGEST or not HUB_NAME.fullmatch(text):
        return no_such_file(Path(text))
    said = f"{text!r} is no file, folder or module here, and nothing is downloaded"
    return f"{said}. A model of the Hugging Face Hub is looked at like this:{_from_hub(text)}"


def _of_url(text: str) -> str:
    said = f"{text!r} is not on this machine, and nothing is downloaded"
    hub, name = HUB_PAGE.match(text), Path(re.split("[?#]", text.partition("://")[2])[0]).name
    if hub and not HUB_FILE.search(text):
        return f"{said}. Get it, then look at it:{_from_hub(hub[1])}"
    if not text.startswith(("http://", "https://")) or not name:
        return f"{said}. Copy it here, and name the file."
    address = text.replace("/blob/", "/resolve/") if hub else text
    get = shlex.join(["curl", "-L", "-o", name, address])
    return f"{said}. Get it, then look at it:\n  {get}\n  {shlex.join(['tied', 'check', name])}"


def _from_hub(repository: str) -> str:
    folder = repository.rpartition("/")[2]
    return f"\n  hf download {repository} --local-dir {folder}\n  tied check {folder}"
