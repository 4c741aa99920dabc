"""`tied check FILE`, `tied shrink`, `tied expand`, `tied repair` from the command line."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from tied.cli import app


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    weight = torch.rand(100, 30)
    save_file({"embed": weight, "head": weight.clone()}, "model.safetensors", {"format": "pt"})
    return tmp_path / "model.safetensors"


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_check_shrink_expand(path):
    assert run("check", path).exit_code == 1
    assert run("check", path, "--prove").stdout == run("check", path).stdout
    done = run("shrink", path, "small.safetensors")
    assert done.exit_code == 0
    assert done.stdout == "dropped 'head', which is 'embed': 11.7 KiB\n"
    assert done.stderr.startswith("23.4 KiB of tensors became a file of 12.0 KiB in ")
    assert done.stderr.endswith("/s\n")
    assert run("check", "small.safetensors").exit_code == 0
    assert run("expand", "small.safetensors", "again.safetensors").exit_code == 0
    assert (path.parent / "again.safetensors").read_bytes() == path.read_bytes()


def test_repair_asks_for_a_winner(path):
    tie = {"target": "head", "source": "embed", "dtype": "F32", "shape": [100, 30]}
    text = json.dumps({"version": 1, "layout": "expanded", "ties": [tie]})
    save_file({"embed": torch.ones(100, 30), "head": torch.zeros(100, 30)}, path, {"tied": text})
    done = run("repair", path, "new.safetensors")
    assert done.exit_code == 2
    assert "fix:      name the winner: --keep source, target or mean" in done.stderr
    assert not (path.parent / "new.safetensors").exists()
    done = run("repair", path, "new.safetensors", "--keep", "mean")
    assert done.exit_code == 0
    assert done.stdout == "made 'head' equal to 'embed': the mean won\n"
    assert (load_file("new.safetensors")["head"] == 0.5).all()
    done = run("repair", path, "other.safetensors", "--keep", "both")
    said = "tied repair: --keep must be source, target or mean, not 'both'\nNothing was written.\n"
    assert (done.exit_code, done.stderr) == (2, said)


@pytest.mark.parametrize("command", ["shrink", "expand", "repair"])
def test_what_cannot_be_done_is_said_with_status_2(command, path):
    for arguments, said in (
        (["nowhere.safetensors", "new.safetensors"], "No such file or directory: 'nowhere.safetensors'"),
        (["modle.safetensors", "new.safetensors"], "'modle.safetensors'; did you mean 'model.safetensors'?\nNothing"),
        ([path, "nowhere/new.safetensors"], "No such file or directory: 'nowhere/new.safetensors'"),
        ([path, path], "Something stands there already."),
        ([path, "new.pt"], "The new file is safetensors."),
        ([path.parent / "a.pt", "new.safetensors"], "a.pt"),
    ):
        done = run(command, *arguments)
        assert done.exit_code == 2
        assert f"tied {command}: " in done.stderr
        assert said in done.stderr
        assert "Nothing was written." in done.stderr
        assert "Traceback" not in done.output
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("named", [(), (".tied-0123.tmp",)])
def test_a_full_disk(named, path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", *named)

    monkeypatch.setattr("tied.files.rewriting.rewrite._write", full)
    done = run("shrink", path, "new.safetensors")
    assert done.exit_code == 2
    assert done.stderr == "tied shrink: No space left on device: 'new.safetensors'\nNothing was written.\n"
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_an_interruption(path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("tied.files.rewriting.rewrite._write", interrupted)
    done = run("shrink", path, "new.safetensors")
    assert done.exit_code == 130
    assert done.stderr == "Interrupted; nothing was written.\n"


def test_a_hostile_file(path):
    path.write_bytes((2**40).to_bytes(8, "little") + b"{}")
    done = run("check", path)
    assert done.exit_code == 2
    assert "Its header is too long." in done.stderr
