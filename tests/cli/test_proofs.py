"""`tied proofs` as people run it: in a process of its own."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
# A process started in the background inherits "ignore" for SIGINT; a user's does not.
START = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\nfrom tied.cli import main\n"
BREAK = """
import tied.study.proofs.popular_recipe as recipe
recipe.TIED = recipe.SECOND_PARAMETER
"""


def proofs(*arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", f"{START}{before}main()", "proofs", *arguments],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_proofs_hold_and_print_a_table():
    done = proofs("--only", "copies")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["claim", "measured", "band", "verdict", "s"]
    assert lines[2] == "copies: Copies and casts stay tied"
    assert lines[4].split() == ["control:", "nn.Parameter(w.t())", "0.0029", "fails"]
    assert lines[-1].startswith("2 of 2 claims hold and have a control that fails; ")
    assert done.stderr.splitlines() == ["Loading torch ...", "proving 1 of 1: copies: holds"]
    assert max(len(line) for line in lines) <= 100


def test_json_is_json_only():
    done = proofs("--only", "[ad]*", "--json")
    assert done.returncode == 0, done.stderr
    known = json.loads(done.stdout)
    assert known["proven"] is True
    assert [proof["name"] for proof in known["proofs"]] == ["decay", "adjoint", "descent"]
    assert len(known["findings"]) == 5


def test_a_missed_band_is_exit_status_one():
    done = proofs("--only", "copies", before=BREAK)
    assert done.returncode == 1
    assert "MISSED" in done.stdout
    assert "copies: after copy.deepcopy and a step, decoder = encoder.T: measured 0.0029, band ≤ 1e-12." in done.stdout
    assert "copies: does not hold" in done.stderr
    assert json.loads(proofs("--only", "copies", "--json", before=BREAK).stdout)["proven"] is False


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("decai", "tied proofs: 'decai' is the name of no proof. Did you mean 'decay'?"),
        ("", "tied proofs: '' is the name of no proof. There are: pca, "),
    ],
)
def test_an_unknown_name_is_one_clear_line(name, message):
    done = proofs("--only", name)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith(message)


@pytest.mark.parametrize(("after", "finished"), [("Loading", ""), ("proving 1 of", "decay")])
def test_ctrl_c_leaves_what_is_finished_and_says_so(after, finished):
    process = subprocess.Popen(
        [sys.executable, "-c", f"{START}main()", "proofs", "--only", "[dr]*"],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stderr:
        if line.startswith(after):
            process.send_signal(signal.SIGINT)
            break
    printed, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("Interrupted")
    assert finished in printed
    assert bool(printed) == bool(finished)
