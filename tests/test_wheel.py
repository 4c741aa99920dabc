"""The wheel holds what a user needs: all code, the type marker, the digits, the rules, the licence; and it runs."""

import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tied.reporting.rules import RULES

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """Build the wheel once, with the build backend that is installed."""
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, "-w", str(folder), str(ROOT)], check=True)
    (path,) = folder.glob("tied-*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_wheel_holds_the_whole_package(wheel: zipfile.ZipFile):
    files = [path for path in (SRC / "tied").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    expected = {path.relative_to(SRC).as_posix() for path in files} | {"tied/reporting/rules.md"}
    assert {name for name in wheel.namelist() if ".dist-info/" not in name} == expected


@pytest.mark.parametrize("part", ["tied/py.typed", "digits.npz", ".dist-info/licenses/LICENSE"])
def test_wheel_holds(wheel: zipfile.ZipFile, part: str):
    assert [name for name in wheel.namelist() if name.endswith(part)]


def test_wheel_names_its_dependencies(wheel: zipfile.ZipFile):
    (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    lines = wheel.read(metadata).decode().splitlines()
    needed = [line.removeprefix("Requires-Dist: ") for line in lines if line.startswith("Requires-Dist: ")]
    always = sorted(line for line in needed if "extra ==" not in line)
    assert [line.split(">")[0] for line in always] == ["numpy", "rich", "safetensors", "torch", "typer"]


def test_wheel_runs(wheel: zipfile.ZipFile, tmp_path: Path):
    """The unpacked wheel, and not the sources, is imported; it reads the digits, answers `--help`, explains rules."""
    wheel.extractall(tmp_path)

    def run(*arguments: str) -> str:
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    code = "import tied, tied.study.digits; print(tied.__file__, len(tied.study.digits.load()))"
    assert run("-c", code).split() == [str(tmp_path / "tied" / "__init__.py"), "1797"]
    assert "Usage" in run("-m", "tied", "--help")
    rules = json.loads(run("-m", "tied", "rules", "--json"))
    assert {rule["code"] for rule in rules} == set(RULES)
    assert all(rule["why"] and rule["example"] and rule["fix"] for rule in rules)
