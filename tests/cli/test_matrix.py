"""`tied matrix` as people run it: a table, JSON, a page, an explanation; and what comes of wrong use."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tied.cli import app
from tied.study.matrix import run as run_module
from tied.study.matrix.row import Outcome

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
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


def test_rows_as_json_and_page(tmp_path):
    done = tied("matrix", "--rows", "deepcopy*", "--json", "--html", "pages/matrix.html", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    states = {(cell["row"], cell["recipe"]): cell["state"] for cell in printed["cells"]}
    assert len(states) == 16
    assert (states["deepcopy", "Parameter"], states["deepcopy", "tied"]) == ("wrong", "ok")
    assert printed["interrupted"] is False
    assert any(line.endswith(" of 16: deepcopy: 5 ok, 3 wrong") for line in done.stderr.splitlines())
    assert done.stderr.splitlines()[-1] == "Written: pages/matrix.html"
    assert "deepcopy_dec / hook, transposed: wrong" in (tmp_path / "pages" / "matrix.html").read_text()
    assert "\x1b" not in done.stderr


def test_interrupted_run_shows_what_is_finished(tmp_path):
    process = subprocess.Popen(
        [*COMMAND, "matrix", "--rows", "[ds]*"],
        env=ENVIRONMENT,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    seen = []
    for line in process.stderr:
        seen.append(line)
        if line.startswith("cells"):
            process.send_signal(signal.SIGINT)
            break
    printed, rest = process.communicate(timeout=60)
    said = "".join(seen) + rest
    assert process.returncode == 130
    assert "Traceback" not in said
    assert "Interrupted. Finished: " in said
    assert "  sgd5 " in printed
    assert "counts:" in printed


# In this process: no torch to load again


def invoke(*arguments: str):
    return CliRunner().invoke(app, ["matrix", *arguments])


def test_explain():
    done = invoke("--explain", "load_assign", "registered twice", "--tie", "both")
    assert done.exit_code == 0, done.stderr
    for words in (
        "load_assign / twice, transposed tie: wrong",
        "load_assign / twice, identity tie: wrong",
        "NOT training: after 3 steps of AdamW, the model differs by",
        "model.head.weight = model.embed.weight",
        "fresh.model.load_state_dict(_through_file(subject.model.state_dict()), assign=True)",
        "pytorch pull request 188347",
    ):
        assert words in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "deepcpy"], "'deepcpy' is no row of the matrix. Did you mean 'deepcopy' or 'deepcopy_dec'?"),
        (["--explain", "deepcopy", "twce"], "'twce' is no recipe of the matrix. Did you mean 'twice'?"),
        (["--explain", "deep*", "tied"], "'deep*' is no row of the matrix. "),
        (["--tie", "knot"], "--tie must be transposed, identity or both, not 'knot'"),
        (["--limit", "0"], "--limit must be more than 0, not 0"),
        (["--html", "file/page.html"], "--html file/page.html: "),
        (["--html", "."], "--html .: Is a directory"),
    ],
)
def test_wrong_use_is_one_clear_line(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    done = invoke(*arguments)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith(f"tied matrix: {message}")
    assert len(done.stderr.splitlines()) <= 2
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("recipe", "state", "code"), [("tied", "wrong", 1), ("tied", "error", 0), ("twice", "wrong", 0)]
)
def test_status_tells_whether_tied_is_wrong(monkeypatch, recipe, state, code):
    outcome = Outcome("transposed", "double", recipe, state, "training: it differs")
    monkeypatch.setattr(run_module, "run", lambda plan: iter([outcome]))
    done = invoke()
    assert done.exit_code == code
    assert ("tied is wrong in double (transposed): training: it differs" in done.stdout) == (code == 1)


def test_a_server_that_dies_is_one_clear_line(monkeypatch):
    def dies(plan):
        raise RuntimeError("the process that runs the cells ended early: out of memory")

    monkeypatch.setattr(run_module, "run", dies)
    done = invoke()
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1] == "tied matrix: the process that runs the cells ended early: out of memory"


def test_interrupted_before_anything(monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "keys_of", stopped)
    done = invoke("--explain", "deepcopy", "tied")
    assert done.exit_code == 130
    assert done.stderr.splitlines()[-1] == "Interrupted before anything was finished."
