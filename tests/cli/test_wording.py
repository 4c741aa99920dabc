"""No command speaks to its user as if Python had been called: every error of every command, provoked."""

import json
import re
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from tied.cli import app
from tied.cli.wording import as_options, said
from tied.errors import KindError, TieError

PYTHON = re.compile(
    r"(?<!torch\.)(?<!numpy\.)\b(check|shrink|expand|repair|load|save|audit|load_file)\("  # a call that nobody typed
    r"|\b(keep|select|ignore|prove|tell|path|target|arg|form|as_json|seeds|resume|compare|out|only|rows|limit)\s?="
    r"|The model was not changed|Traceback|\bNone\b|\w+Error:"
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weight = torch.rand(30, 20)
    ledger = {"version": 1, "layout": "expanded", "ties": []}

    def tied(name: str, tensors: dict, *ties: dict) -> None:
        save_file(tensors, name, {"tied": json.dumps(ledger | {"ties": list(ties)})})

    tie = {"target": "b", "source": "a", "dtype": "F32", "shape": [30, 20]}
    third = tie | {"target": "c"}
    save_file({"a": weight}, "model.safetensors")
    tied("drifted.safetensors", {"a": weight, "b": weight + 1}, tie)
    tied("twice.safetensors", {"a": weight, "b": weight + 1, "c": weight + 2}, tie, third)
    tied("pieces.safetensors", {"a": weight, "b": torch.ones(30, 20)}, tie | {"source": "a.clamp(0)"})
    tied("squared.safetensors", {"a": weight, "b": -torch.ones(30, 20)}, tie | {"source": "a.square()"})
    torch.save({"a": weight, "sparse": torch.eye(3).to_sparse()}, "model.pt")
    torch.save(torch.nn.Linear(2, 2), "whole.pt")
    Path("broken.safetensors").write_bytes(b"\xff" * 40)
    Path("long.safetensors").write_bytes((2**40).to_bytes(8, "little") + b"{}")
    Path("empty.pt").write_bytes(b"")
    Path("broken.py").write_text("def (\n")
    Path("empty").mkdir()
    for name in ("several", "chunks"):
        Path(name).mkdir()
    save_file({"a": weight}, "several/a.safetensors")
    save_file({"a": weight}, "several/b.safetensors")
    Path("chunks/.metadata").write_bytes(b"no pickle")
    Path("model.safetensors.index.json").write_text('{"weight_map": {"a": "../../x.safetensors"}}')
    Path("text.txt").write_bytes(b"\xff\xfe\xfa")
    Path("data.npy").write_bytes(b"no array")
    Path("short.csv").write_text("a,b\n1,2\n")
    return tmp_path


FILES = ["drifted", "twice", "pieces", "squared", "broken", "long", "gone"]
FILES = [f"{name}.safetensors" for name in FILES] + ["model.pt", "whole.pt", "empty.pt", "empty", "several", "chunks"]
FILES += ["model.safetensors.index.json", "text.txt", "."]
CHECKS = [["check", path] for path in [*FILES, "broken.py", "gone.py", "gone", "gone:x"]]
CHECKS += [
    ["check", "model.safetensors", option, value]
    for option in ("--select", "--ignore", "--format", "--arg")
    for value in ("TIE9", "x=1", "E501", "tie", "x")
    if (option, value) not in {("--select", "tie"), ("--ignore", "tie")}
]
REWRITES = [[command, path, "new.safetensors"] for command in ("shrink", "expand", "repair") for path in FILES]
KEEPS = ("target", "mean", "both")
REWRITES += [["repair", path, "new.safetensors", "--keep", keep] for path in FILES for keep in KEEPS]
REWRITES += [
    [command, "model.safetensors", target]
    for command in ("shrink", "expand", "repair")
    for target in ("model.safetensors", "new.pt", "new", "gone/new.safetensors", "empty", "text.txt")
]
TRAININGS = [
    ["train", "autoencoder", "--data", data]
    for data in ("gone.npy", "data.npy", "short.csv", "empty", "text.txt", "xx")
]
TRAININGS += [["train", "autoencoder", *options.split()] for options in (
    "--sizes 0", "--sizes a,b", "--epochs 0", "--batch-size 0", "--lr 0", "--lr nan", "--seed -1", "--patience -1",
    "--denoise 1", "--loops -1", "--seeds -1", "--resume", "--out text.txt", "--compare --patience 1", "--epochs x",
    "--data short.csv --conv", "--resume --out empty",
)]  # fmt: skip
TRAININGS += [["train", "lm", *options.split()] for options in (
    "--data gone.txt", "--data text.txt", "--data empty", "--tokens bytes", "--network rnn", "--width 0", "--dropout 1",
    "--loops 1", "--context 0", "--data broken.py", "--out text.txt",
)]  # fmt: skip
OTHERS = [
    ["rules", "TIE9"], ["demo", "--seed", "-1"], ["demo", "--out", "text.txt"], ["demo", "--seed", "x"],
    ["proofs", "--only", "decai"], ["matrix", "--rows", "deepcpy"], ["matrix", "--tie", "knot"],
    ["matrix", "--limit", "0"], ["matrix", "--explain", "deepcopy", "twce"], ["matrix", "--html", "."],
]  # fmt: skip


@pytest.mark.parametrize("arguments", [*CHECKS, *REWRITES, *TRAININGS, *OTHERS], ids=" ".join)
def test_a_command_speaks_of_options(folder, arguments):
    result = CliRunner().invoke(app, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert not PYTHON.search(result.stderr), result.stderr
    if arguments[0] == "check":
        assert "Nothing was written" not in result.stderr
    if arguments[0] in ("shrink", "expand", "repair") and result.exit_code:
        assert result.exit_code == 2
        assert result.stderr.endswith("\nNothing was written.\n") or "Usage" in result.stderr
        assert not Path("new.safetensors").exists()


def test_a_checkpoint_that_broke_is_said_on_resuming(folder):
    numpy.save("rows.npy", numpy.random.default_rng(0).random((40, 6)))
    train = ["train", "autoencoder", "--data", "rows.npy", "--sizes", "3", "--epochs", "2", "--out", "run"]
    assert CliRunner().invoke(app, train).exit_code == 0
    for path in Path("run").rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:50])
    result = CliRunner().invoke(app, [*train[:-3], "3", "--out", "run", "--resume"])
    assert result.exit_code == 2, result.output
    assert "It ends within its header." in result.stderr
    assert not PYTHON.search(result.stderr), result.stderr
    assert result.stderr.endswith("save or download it again\n")


def test_every_kind_of_wrong_was_met(folder):
    """The runs above are no proof where all of them succeed."""
    failed = [arguments for arguments in [*CHECKS, *REWRITES] if CliRunner().invoke(app, arguments).exit_code == 2]
    assert len(failed) > 60
    assert {arguments[0] for arguments in failed} == {"check", "shrink", "expand", "repair"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("keep='source'", "--keep source"),
        ("keep='source' or 'mean'", "--keep source or mean"),
        ("name the winner: keep='source', 'target' or 'mean'", "name the winner: --keep source, target or mean"),
        ("prove=True", "--prove"),
        ("array.astype('float32'), keepdim=True", "array.astype('float32'), keepdim=True"),
    ],
)
def test_keywords_become_options(text, words):
    assert as_options(text) == words


def test_the_state_of_a_model_is_said_of_models_only():
    error = KindError("Wrong.", found="1", expected="2", fix="3")
    assert str(error).endswith("\nThe model was not changed.")
    assert said(error) == "Wrong.\n  found:    1\n  expected: 2\n  fix:      3"
    assert said(error, state="Nothing was written.").endswith("\nNothing was written.")
    assert said(TieError("Wrong.")) == "Wrong."
