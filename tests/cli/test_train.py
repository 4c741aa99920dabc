"""`tied train` as people run it: in a process of its own, alone or under accelerate, interrupted and killed."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
# A process started in the background inherits "ignore" for SIGINT; a user's does not.
START = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\nfrom tied.cli import main\n"
COMMAND = [sys.executable, "-c", f"{START}main()"]
SMALL = ("train", "autoencoder", "--data", "a.npy", "--sizes", "6,3", "--batch-size", "16")
PICTURES = {"filters.png", "reconstructions.png", "codes.png", "loss.png"}
TEXTS = {"plan.json", "history.csv", "results.json", "report.html"}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    np.save(folder / "a.npy", np.random.default_rng(0).random((60, 5, 4)))
    (folder / "text.txt").write_text("the cat sat on the mat and the dog sat too.\n" * 60)
    return folder


def environment(**more: str) -> dict[str, str]:
    return ENVIRONMENT | more


def tied(*arguments: str, cwd: Path, before: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", f"{START}{before}main()"] if before else COMMAND
    return subprocess.run(
        [*command, *arguments], env=ENVIRONMENT, cwd=cwd, capture_output=True, text=True, timeout=300, check=False
    )


def figures(folder: Path) -> list[tuple[str, ...]]:
    """The history without its times."""
    with (folder / "history.csv").open() as stream:
        return [tuple(row[:-1]) for row in csv.reader(stream)]


@pytest.fixture(scope="module")
def compared(data):
    return tied(*SMALL, "--epochs", "4", "--compare", "--seeds", "2", "--out", "compared", cwd=data), data / "compared"


def test_a_comparison_prints_a_table_and_writes_its_folder(compared):
    done, folder = compared
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[3:5]] == ["tied", "untied"]
    assert "At equal steps, tied has a held-out error" in done.stdout
    runs = {f"{kind}-seed-{seed}" for kind in ("tied", "untied") for seed in (0, 1)}
    assert {path.name for path in folder.iterdir()} == PICTURES | TEXTS | runs
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in PICTURES)
    assert (folder / "report.html").read_text().count("data:image/png;base64,") == 4
    assert (folder / "tied-seed-0" / "model.safetensors").exists()


def test_progress_is_plain_lines_on_stderr(compared):
    done, _ = compared
    lines = done.stderr.splitlines()
    assert "\x1b" not in done.stderr
    assert lines[0] == "Loading torch ..."
    assert lines[1] == "Training on cpu, in 1 process."
    assert any(line.startswith("training 16 of 16: untied-seed-1, epoch 4: held-out error 0.") for line in lines)
    assert lines[-1].startswith("Written to compared: results.json, report.html, filters.png")


@pytest.mark.slow
def test_json_is_json_only(data):
    done = tied(*SMALL, "--epochs", "2", "--json", "--out", "json", cwd=data)
    assert done.returncode == 0, done.stderr
    known = json.loads(done.stdout)
    assert known["plan"]["sizes"] == [6, 3]
    assert [run["name"] for run in known["runs"]] == ["tied-seed-0"]
    assert known == json.loads((data / "json" / "results.json").read_text())


def test_a_language_model_writes_text(data):
    options = ("--data", "text.txt", "--width", "8", "--context", "8", "--epochs", "2", "--network", "transformer")
    done = tied("train", "lm", *options, "--loops", "2", "--no-tie", "--out", "lm", cwd=data)
    assert done.returncode == 0, done.stderr
    assert "perplexity" in done.stdout
    assert done.stdout.split("\n\n")[1].startswith("perplexity: on data never trained on")
    assert "untied-seed-0" in done.stderr
    assert {path.name for path in (data / "lm").iterdir()} == {"loss.png", "untied-seed-0", *TEXTS}
    assert "What the untied model writes" in (data / "lm" / "report.html").read_text()


@pytest.mark.slow
def test_one_epoch_makes_no_curve(data):
    done = tied(*SMALL, "--epochs", "1", "--out", "once", cwd=data)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert not (data / "once" / "loss.png").exists()


def started(folder: Path, out: str, *options: str) -> subprocess.Popen[str]:
    """Start a long training and return when it has taken some steps and written a checkpoint or a plan."""
    command = [*COMMAND, *SMALL, "--epochs", "3000", "--patience", "2900", "--out", out, *options]
    return subprocess.Popen(
        command, env=ENVIRONMENT, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(path: Path, pattern: str) -> None:
    for _ in range(3000):
        if any(path.glob(pattern)):
            return
        time.sleep(0.02)
    pytest.fail(f"no {pattern} in {path}")


def test_ctrl_c_saves_says_how_to_go_on_and_that_command_goes_on(data):
    process = started(data, "stopped")
    for line in process.stderr:
        if line.startswith("training"):
            break
    process.send_signal(signal.SIGINT)
    printed, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert printed == ""
    assert "Traceback" not in said
    first, second = said.splitlines()[-2:]
    assert first.startswith("Interrupted at tied-seed-0, step ")
    assert first.endswith("; everything is saved. Go on with:")
    assert second.startswith("tied train autoencoder ")
    assert second.endswith(" --out stopped --resume")
    process = subprocess.Popen(
        [*COMMAND, *second.split()[1:]],
        env=ENVIRONMENT,
        cwd=data,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stderr:
        if line.startswith("training"):
            process.send_signal(signal.SIGINT)
            break
    process.communicate(timeout=120)
    assert process.returncode == 130
    epochs = [int(row[1]) for row in figures(data / "stopped")[1:]]
    assert epochs == list(range(1, len(epochs) + 1))


@pytest.mark.slow
def test_ctrl_c_before_the_training_leaves_nothing(data):
    process = started(data, "early")
    process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert "Interrupted" in said


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_figures_of_an_unbroken_one(data):
    options = (*SMALL, "--epochs", "400", "--denoise", "0.3", "--compare", "--seeds", "1")
    assert tied(*options, "--out", "unbroken", cwd=data).returncode == 0
    often = "import tied.study.train.run as run; run.SECONDS_BETWEEN_CHECKPOINTS = 0.05\n"
    process = subprocess.Popen(
        [sys.executable, "-c", f"{START}{often}main()", *options, "--out", "killed"],
        env=ENVIRONMENT,
        cwd=data,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for(data / "killed", "*/checkpoint-*")
    time.sleep(0.5)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (data / "killed" / "results.json").exists()
    done = tied(*options, "--out", "killed", "--resume", cwd=data)
    assert done.returncode == 0, done.stderr
    assert figures(data / "killed") == figures(data / "unbroken")


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(
    "options",
    [
        (*SMALL, "--epochs", "3", "--denoise", "0.3", "--compare", "--seeds", "1"),
        ("train", "lm", "--data", "text.txt", "--width", "8", "--context", "8", "--epochs", "2", "--dropout", "0"),
    ],
    ids=["autoencoder", "lm"],
)
def test_two_processes_train_as_one(data, options):
    out = f"alone-{options[1]}", f"together-{options[1]}"
    assert tied(*options, "--out", out[0], cwd=data).returncode == 0
    launch = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    done = subprocess.run(
        [sys.executable, "-m", *launch, "-m", "tied", *options, "--out", out[1]],
        env=environment(ACCELERATE_USE_CPU="true"),
        cwd=data,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Training on cpu, in 2 processes." in done.stderr
    assert done.stdout.count("for comparison".capitalize()) == 1
    alone, together = figures(data / out[0]), figures(data / out[1])
    assert [row[:3] for row in alone] == [row[:3] for row in together]
    for mine, theirs in zip(alone[1:], together[1:], strict=True):
        assert [float(x) for x in mine[3:]] == pytest.approx([float(x) for x in theirs[3:]], rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["autoencoder", "--epochs", "0"], "tied train autoencoder: --epochs must be 1 or more, not 0"),
        (
            ["autoencoder", "--sizes", "12,x"],
            "tied train autoencoder: --sizes must be positive integers, such as 128,16, not 12,x",
        ),
        (["autoencoder", "--data", "gone.npy"], "tied train autoencoder: gone.npy cannot be read."),
        (["autoencoder", "--resume", "--out", "gone"], "tied train autoencoder: There is nothing to resume."),
        (
            ["autoencoder", "--compare", "--patience", "3"],
            "tied train autoencoder: --patience must be 0 with --compare",
        ),
        (["autoencoder", "--out", "file"], "tied train autoencoder: file: File exists"),
        (["lm", "--data", "file"], "tied train lm: file is too short to train on and to hold out."),
        (["lm", "--loops", "2"], "tied train lm: --loops must be 0 with --network lstm, not 2"),
    ],
)
def test_wrong_use_is_a_clear_message_and_leaves_nothing(tmp_path, arguments, message):
    (tmp_path / "file").write_text("mine")
    done = tied("train", *arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert any(line.startswith(message) for line in done.stderr.splitlines())
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("package", "message", "status"),
    [
        ("accelerate", "tied train autoencoder: Training needs accelerate: pip install 'tied[train]'", 2),
        ("matplotlib.figure", "Pictures need matplotlib: pip install 'tied[pictures]'", 0),
    ],
)
def test_a_missing_extra_is_one_line(data, tmp_path, package, message, status):
    before = f"import sys; sys.modules['{package}'] = None\n"
    done = tied(*SMALL[:3], str(data / "a.npy"), "--epochs", "2", "--out", "out", cwd=tmp_path, before=before)
    assert done.returncode == status
    assert message in done.stderr.splitlines()
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_loss_that_is_no_number_is_exit_status_one(data):
    done = tied(*SMALL, "--lr", "1e30", "--out", "diverged", cwd=data)
    assert done.returncode == 1
    assert "tied train autoencoder: The loss is no number any more." in done.stderr


def test_help_names_every_option_without_torch(tmp_path):
    before = "import sys, atexit; atexit.register(lambda: print('torch' in sys.modules))\n"
    for command, options in {
        "autoencoder": "data sizes conv no-tie compare denoise loops epochs batch-size lr seed out resume json",
        "lm": "data tokens network width layers loops dropout context compare epochs seeds",
    }.items():
        done = tied("train", command, "--help", cwd=tmp_path, before=before)
        assert done.returncode == 0
        assert all(f"--{option}" in done.stdout for option in options.split())
        assert done.stdout.splitlines()[-1] == "False"
