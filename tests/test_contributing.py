"""The map in CONTRIBUTING.md: what it names exists, and every folder of the library is on it."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src" / "tied"
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
MAP = TEXT.partition("## Which folder for which change")[2].partition("\n## ")[0]

PATH = re.compile(r"`((?:[\w-]+/)+(?:[\w.-]+\.\w+)?|[\w-]+\.(?:py|md))`")
NAMED = sorted(set(PATH.findall(MAP)))
OWN_IDEA = {"laws", "border", "transformers", "golden"}  # folders of tests that stand for no folder of the library


def exists(path: str) -> bool:
    return (ROOT / path).exists() or (SRC / path).exists()


@pytest.mark.parametrize("path", NAMED)
def test_named_path_exists(path: str):
    assert exists(path)


def test_paths_are_found_and_can_be_missing():
    assert {"src/tied/algebra/pointwise.py", "files/reading/", "docs/rules.md", "errors.py"} <= set(NAMED)
    assert PATH.findall("`src/tied/algebra/tanh.py`, `plumbing/` and `METHODS`") == [
        "src/tied/algebra/tanh.py",
        "plumbing/",
    ]
    assert not exists("src/tied/algebra/tanh.py")
    assert not exists("plumbing/")


def test_every_part_of_the_library_is_on_the_map():
    parts = {path.name for path in SRC.iterdir() if (path / "__init__.py").exists()}
    assert parts
    assert {part for part in parts if f"`{part}/`" not in MAP} == set()


def test_tests_lie_as_the_code_does():
    folders = {path.parent.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")}
    here = {folder for folder in folders if folder.parts and folder.parts[0] not in OWN_IDEA}
    assert len(here) > 10
    assert {str(folder) for folder in here if not (SRC / folder).is_dir()} == set()


def test_the_map_fits_on_one_screen():
    assert len(MAP.splitlines()) <= 60
