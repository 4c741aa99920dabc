"""`tied demo` as people run it: in a process of its own, with and without a terminal."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
FILES = {"results.json", "report.html", "filters.png", "reconstructions.png", "loss.png"}
# A process started in the background inherits "ignore" for SIGINT; a user's does not.
COMMAND = [
    sys.executable,
    "-c",
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\nfrom tied.cli import main; main()",
]


def tied(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        env=ENVIRONMENT,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """One whole quick run, in the default folder, printing JSON."""
    folder = tmp_path_factory.mktemp("quick")
    return tied("demo", "--quick", "--json", "--seed", "3", cwd=folder), folder / "tied-demo"


def test_quick_run_ends_well_and_prints_json_only(quick):
    done, _ = quick
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed["plan"]["seed"] == 3
    assert printed["interrupted"] is False
    assert printed["elapsed_seconds"] < 120
    assert len(printed["recipes"]) == 10


def test_quick_run_writes_the_folder(quick):
    done, folder = quick
    assert {path.name for path in folder.iterdir()} == FILES
    assert json.loads((folder / "results.json").read_text()) == json.loads(done.stdout)
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in FILES if name.endswith("png"))


def test_progress_is_plain_lines_on_stderr(quick):
    done, _ = quick
    lines = done.stderr.splitlines()
    assert "\x1b" not in done.stderr
    assert "\r" not in done.stderr
    assert "checking 8 of 10: tied" in lines
    assert any(line.startswith("training 19 of 19: untied baseline, seed 4, epoch 40:") for line in lines)
    assert lines[-1].startswith("Written to tied-demo: results.json, report.html, filters.png")


def interrupted(folder: Path, after: str) -> tuple[int, str, str]:
    """Run the full demo, send Ctrl-C when a line starts with `after`, and wait for the end."""
    process = subprocess.Popen(
        [*COMMAND, "demo", "--out", "out"],
        env=ENVIRONMENT,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    seen = []
    for line in process.stderr:
        seen.append(line)
        if line.startswith(after):
            process.send_signal(signal.SIGINT)
            break
    printed, rest = process.communicate(timeout=120)
    return process.returncode, printed, "".join(seen) + rest


def test_interrupted_run_leaves_what_is_finished_and_says_so(tmp_path):
    code, printed, said = interrupted(tmp_path, after="training 1 of 28")
    assert code == 130
    assert "Interrupted. Finished: 10 recipes checked, 1 of 28 models trained." in said
    assert "Written to out: results.json, report.html" in said
    assert "nn.Parameter(w.t())" in printed
    assert "Traceback" not in said
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["interrupted"] is True
    assert results["recipes"][7]["survival"]["deepcopy"] == "yes"


def test_interrupted_at_once_leaves_nothing_and_says_so(tmp_path):
    code, printed, said = interrupted(tmp_path, after="Loading torch")
    assert code == 130
    assert printed == ""
    assert "Traceback" not in said
    assert "Interrupted before anything was measured; nothing was written." in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed", "-1"], "tied demo: --seed must be 0 or more, not -1"),
        (["--out", "file"], "tied demo: --out file: File exists"),
        (["--out", "file/below"], "tied demo: --out file/below: Not a directory"),
    ],
)
def test_wrong_use_is_one_clear_line(tmp_path, arguments, message):
    (tmp_path / "file").write_text("mine")
    done = tied("demo", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1] == message
    assert len(done.stderr.splitlines()) <= 2
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


def test_unknown_option_and_command(tmp_path):
    for arguments in (["demo", "--quik"], ["dmeo"]):
        done = tied(*arguments, cwd=tmp_path)
        assert done.returncode == 2
        assert "No such" in done.stderr
        assert "Traceback" not in done.stderr


def test_help_and_version(tmp_path):
    assert "--quick" in tied("demo", "--help", cwd=tmp_path).stdout
    assert tied("--version", cwd=tmp_path).stdout.startswith("tied ")
    assert "demo" in tied("--help", cwd=tmp_path).stdout
