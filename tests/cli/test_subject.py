"""What `tied check` is asked to look at: factories by file and by module, what is near, what must be fetched first."""

import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from tied.cli import app
from tied.cli.near_names import near_file

MODEL = """
from torch import nn
from pathlib import Path
import sibling_of_model

Path("ran").touch()


class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.a, self.b = nn.Linear(width, width), nn.Linear(width, width)
        self.b.weight = self.a.weight


class Deep(Net):
    def __init__(self, width, *, depth, bias=True):
        super().__init__(width)


class Settings:
    pass


def make(width):
    return Net(width)


def anything(**options):
    return Net(**options)


net = Net()
LIMIT = 3
"""
OFFERS = """\
tied check: name what in {0} is the model, or makes it (which runs its code):
  tied check {0}:Net
  tied check {0}:Deep --arg width=VALUE --arg depth=VALUE
  tied check {0}:net
  tied check {0}:make --arg width=VALUE
  tied check {0}:anything
"""
PACKAGED = "from torch import nn\nfrom . import part\n\n\ndef make():\n    return nn.Linear(2, 2)\n"


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before, path = set(sys.modules), list(sys.path)
    for name, text in {"model": MODEL, "sibling_of_model": "", "leaves": "import sys\nsys.exit(0)\n"}.items():
        Path(f"{name}.py").write_text(text)
    Path("models_here").mkdir()
    for name, text in {"__init__": "", "inner": PACKAGED, "part": ""}.items():
        Path(f"models_here/{name}.py").write_text(text)
    Path("runs").mkdir()
    save_file({"a": torch.rand(3, 4)}, "model.safetensors")
    save_file({"a": torch.rand(3, 4)}, "runs/model.safetensors")
    torch.save({"a": torch.rand(3)}, "lm.pt")
    yield lambda *arguments: CliRunner().invoke(app, ["check", *arguments])
    assert sys.path == path
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


@pytest.mark.parametrize("module", ["model.py", "./model.py", "model", "{here}/model.py"])
def test_a_factory_of_a_file_or_module(run, module):
    module = module.format(here=Path.cwd())
    result = run(f"{module}:make", "--arg", "width=64")
    assert result.exit_code == 0
    assert result.stdout.startswith("Net: 4,224 parameters, 16.5 KiB; sharing saves 16.0 KiB\n")
    assert result.stderr == f"Importing {module}, which runs its code ...\n"
    assert run(f"{module}:net").stdout.startswith("Net: 24 parameters")


@pytest.mark.parametrize("module", ["models_here/inner.py", "models_here.inner"])
def test_a_file_of_a_package_may_import_what_is_beside_it(run, module):
    assert run(f"{module}:make").stdout.startswith("Linear: 6 parameters")


def test_a_file_with_the_name_of_a_library_is_the_file(run):
    Path("lib").mkdir()
    Path("lib/json.py").write_text("from torch import nn\nnet = nn.Linear(2, 2)\n")
    library = sys.modules["json"]
    assert run("lib/json.py:net").stdout.startswith("Linear: 6 parameters")
    assert sys.modules["json"] is library


def test_another_package_of_that_name_is_not_taken_for_it(run):
    Path("elsewhere/models_here").mkdir(parents=True)
    Path("elsewhere/models_here/__init__.py").write_text("")
    Path("elsewhere/models_here/inner.py").write_text(PACKAGED)
    assert run("models_here.inner:make").exit_code == 0
    result = run("elsewhere/models_here/inner.py:make")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Python imports" in result.stderr


@pytest.mark.parametrize("typed", ["model.py:", "model", "model:"])
def test_a_module_without_a_factory_lists_what_is_in_it_and_runs_nothing(run, typed):
    result = run(typed)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == OFFERS.format(typed.removesuffix(":"))
    assert not Path("ran").exists()


def test_the_lines_to_type_work(run):
    for line in re.findall(r"^  tied check (.*)$", run("model.py:").stderr, re.M):
        arguments = line.replace("VALUE", "4").split()
        assert run(*arguments).exit_code == 0, line


def test_many_offers_are_cut_and_none_is_said(run):
    Path("many.py").write_text("".join(f"def make{number}(): ...\n" for number in range(9)) + "def _own(): ...\n")
    assert run("many").stderr.splitlines()[-2:] == ["  tied check many:make5", "  ... and 3 more"]
    Path("few.py").write_text("x = 3\n")
    assert run("few").stderr == "tied check: few has no class and no function that could make a model\n"
    Path("few.py").write_text("def (\n")
    assert run("few.py:").stderr.startswith("tied check: few.py cannot be read: ")


URL = "https://huggingface.co/openai-community/gpt2"
FETCH = "  hf download openai-community/gpt2 --local-dir gpt2\n  tied check gpt2\n"
AWAY = "is not on this machine, and nothing is downloaded"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["model.py:nat"], "model.py has no 'nat'; did you mean 'net'?\n"),
        (["model:Net.inner"], "model:Net has no 'inner'\n"),
        (["model.py:make"], "model.py:make needs --arg width=VALUE\n"),
        (["model.py:Deep", "--arg", "width=4"], "model.py:Deep needs --arg depth=VALUE\n"),
        (["model.py:make", "--arg", "wdth=3"], "model.py:make takes no --arg wdth=...; did you mean 'width'?\n"),
        (["model.py:net", "--arg", "x=1"], "--arg is for a factory, and model.py:net is a model\n"),
        (["model.py:LIMIT"], "model.py:LIMIT gave int, where a model, or a model and inputs, is needed\n"),
        (["leaves.py:x"], "leaves.py:x raised SystemExit: 0\n"),
        (["modle.py:make"], "no such file or folder: 'modle.py'; did you mean 'model.py'?\n"),
        (["./model:make"], "'./model' is no module; did you mean './model.py:make'?\n"),
        (["modl:Net"], "there is no module 'modl', neither in this folder nor installed; did you mean 'model'?\n"),
        (["modl:"], "there is no module 'modl', neither in this folder nor installed; did you mean 'model'?\n"),
        ([":x"], "':x' is no file, and not of the form package.module:factory or file.py:factory\n"),
        (["modle.safetensors"], "no such file or folder: 'modle.safetensors'; did you mean 'model.safetensors'?\n"),
        (["nosuch.pt"], "no such file or folder: 'nosuch.pt'; that folder has 'lm.pt'\n"),
        (["run/model.safetensors"],
         "no such file or folder: 'run/model.safetensors'; did you mean 'runs/model.safetensors'?\n"),
        (["runz"], "no such file or folder: 'runz'; did you mean 'runs'?\n"),
        (["runs/zzz"], "no such file or folder: 'runs/zzz'\n"),
        (["zzz.pth"], "no such file or folder: 'zzz.pth'\n"),
        (["gpt2"],
         "'gpt2' is no file, folder or module here, and nothing is downloaded. A model of the Hugging Face Hub is "
         "looked at like this:\n  hf download gpt2 --local-dir gpt2\n  tied check gpt2\n"),
        (["openai-community/gpt2"],
         "'openai-community/gpt2' is no file, folder or module here, and nothing is downloaded. A model of the Hugging "
         f"Face Hub is looked at like this:\n{FETCH}"),
        ([URL], f"'{URL}' {AWAY}. Get it, then look at it:\n{FETCH}"),
        ([f"{URL}/tree/main"], f"'{URL}/tree/main' {AWAY}. Get it, then look at it:\n{FETCH}"),
        (["hf://openai-community/gpt2"], f"'hf://openai-community/gpt2' {AWAY}. Get it, then look at it:\n{FETCH}"),
        ([f"{URL}/blob/main/model.safetensors"],
         f"'{URL}/blob/main/model.safetensors' {AWAY}. Get it, then look at it:\n"
         f"  curl -L -o model.safetensors {URL}/resolve/main/model.safetensors\n  tied check model.safetensors\n"),
        (["https://a.org/my model.pt?x=1"],
         f"'https://a.org/my model.pt?x=1' {AWAY}. Get it, then look at it:\n"
         "  curl -L -o 'my model.pt' 'https://a.org/my model.pt?x=1'\n  tied check 'my model.pt'\n"),
        (["s3://bucket/x.pt"], f"'s3://bucket/x.pt' {AWAY}. Copy it here, and name the file.\n"),
        (["https://["],
         f"'https://[' {AWAY}. Get it, then look at it:\n  curl -L -o '[' 'https://['\n  tied check '['\n"),
        (["https://"], f"'https://' {AWAY}. Copy it here, and name the file.\n"),
        (["x" * 5000], f"no such file or folder: '{'x' * 5000}'\n"),
        (["a\x1b[2Jb"], "no such file or folder: 'a\\x1b[2Jb'\n"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_subject_is_said_plainly(run, arguments, said):
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert re.sub(r"\AImporting .*, which runs its code \.\.\.\n", "", result.stderr) == f"tied check: {said}"


def test_names_near_are_those_of_the_folder(tmp_path):
    (tmp_path / "a b.pt").write_text("")
    assert near_file(tmp_path / "a c.pt") == f"; did you mean {str(tmp_path / 'a b.pt')!r}?"
    for number in range(5):
        (tmp_path / f"{number}.bin").write_text("")
    assert near_file(tmp_path / "weights.bin") == "; that folder has '0.bin', '1.bin', '2.bin', ..."
    assert near_file(Path("/nowhere/at/all.pt")) == ""
