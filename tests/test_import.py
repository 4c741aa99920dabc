"""What an import costs: `import tied` loads torch and nothing heavier, and `--help` not even torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"matplotlib", "safetensors", "typer", "rich", "transformers", "accelerate"}
SCRIPT = str(Path(sys.executable).with_name("tied"))
HELP = {"python -m tied": [sys.executable, "-m", "tied", "--help"], "tied": [SCRIPT, "--help"]}


def run(*command: str) -> tuple[set[str], str]:
    """Run a command in a new process; return the top-level modules it loaded and what it printed.

    Python itself lists each import on stderr: `import time: <own> | <total> | <name>`.
    """
    environment = os.environ | {"PYTHONPROFILEIMPORTTIME": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    lines = done.stderr.splitlines()
    assert done.returncode == 0, "\n".join(line for line in lines if not line.startswith("import time:"))
    names = [line.split("|")[-1].strip() for line in lines if line.startswith("import time:")]
    return {name.split(".")[0] for name in names}, done.stdout


def test_import_loads_nothing_heavy():
    loaded, _ = run(sys.executable, "-c", "import tied; tied.tie")
    assert "tied" in loaded
    assert not loaded & HEAVY


@pytest.mark.parametrize("command", HELP.values(), ids=HELP)
def test_help_does_not_load_torch(command: list[str]):
    loaded, printed = run(*command)
    assert "Usage" in printed
    assert "tied" in loaded
    assert "torch" not in loaded


@pytest.mark.parametrize("name", sorted(HEAVY | {"torch"}))
def test_probe_sees_an_import(name: str):
    loaded, _ = run(sys.executable, "-c", f"import {name}")
    assert name in loaded


def test_probe_sees_a_late_import():
    loaded, _ = run(sys.executable, "-c", "def late():\n    import rich.table\nlate()")
    assert "rich" in loaded


def test_probe_fails_where_the_command_fails():
    with pytest.raises(AssertionError, match="oh no"):
        run(sys.executable, "-c", "raise SystemExit('oh no')")
