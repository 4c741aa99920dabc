"""`tied check` and `tied rules`: subjects, formats, settings, exit statuses; in processes as a user starts them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tied.cli import app
from tied.cli.check import _arguments
from tied.reporting.rules import RULES

MODELS = """
import sys
import torch
from torch import nn


class Autoencoder(nn.Module):
    def __init__(self, wide=20, narrow=4, half=True):
        super().__init__()
        self.encoder = nn.Linear(wide, narrow)
        self.decoder = nn.Linear(narrow, wide)
        if half:
            self.decoder.weight = nn.Parameter(self.encoder.weight.t())

    def forward(self, x):
        return self.decoder(self.decoder(self.encoder(x))[:, :4])


clean = Autoencoder(half=False)


def with_inputs():
    return clean, torch.zeros(2, 20)


def broken():
    raise ValueError("no model today")


def number():
    return 3


class Space:
    inner = Autoencoder
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the command in a folder with a module of models."""
    (tmp_path / "own_models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_models", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return lambda *args: CliRunner().invoke(app, [*args])


def test_a_class(run):
    result = run("check", "own_models:Autoencoder")
    assert result.exit_code == 1
    assert result.stdout.startswith("Autoencoder: 104 parameters, 416 B; sharing saves 320 B\n")
    assert "error TIE101 half-tied" in result.stdout
    assert result.stderr == "Importing own_models, which runs its code ...\n"


def test_arguments(run):
    result = run("check", "own_models:Autoencoder", "--arg", "half=False", "--arg", "wide=8")
    assert result.exit_code == 0
    assert result.stdout.startswith("Autoencoder: 76 parameters")


def test_argument_values():
    assert _arguments(["a=1", "b=[1, 2]", "c=text", "d=None", "e=a=b", "f="]) == {
        "a": 1,
        "b": [1, 2],
        "c": "text",
        "d": None,
        "e": "a=b",
        "f": "",
    }


def test_a_model_a_function_with_inputs_and_a_dotted_name(run):
    assert run("check", "own_models:clean").exit_code == 0
    assert run("check", "own_models:Space.inner").exit_code == 1
    result = run("check", "own_models:with_inputs")
    assert (result.exit_code, "called  decoder" in result.stdout) == (0, True)
    assert "2 calls" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["own_models:nothing"], "own_models has no 'nothing'"),
        (["no_such_module:x"], "there is no module 'no_such_module', neither in this folder nor installed"),
        (["own_models:broken"], "own_models:broken raised ValueError: no model today"),
        (["own_models:number"], "own_models:number gave int, where a model, or a model and inputs, is needed"),
        (["own_models:clean", "--arg", "x"], "--arg must be name=value, not 'x'"),
        (["own_models:clean", "--format", "xml"], "--format must be one of text, json, sarif, github, html"),
        (
            ["own_models:clean", "--select", "TIE9"],
            "--select: No rule begins with 'TIE9'. `tied rules` lists",
        ),
        (["own_models:clean", "--prove"], "--prove is for files; of a model all values are compared"),
        (["own_models.py", "--arg", "x=1"], "--arg is for a factory, and a file has none"),
    ],
)
def test_what_cannot_be_looked_at(run, arguments, message):
    result = run("check", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "wrong", [["--select", "TIE9"], ["--ignore", "E1"], ["--arg", "x"], ["--format", "xml"], ["--prove"]]
)
def test_no_code_runs_for_nothing(run, wrong):
    """What can be seen to be wrong is said before the user's module is imported."""
    result = run("check", "own_models:clean", *wrong)
    assert result.exit_code == 2
    assert "Importing" not in result.stderr


def test_formats(run):
    subject = ["check", "own_models:Autoencoder", "--format"]
    assert json.loads(run(*subject, "json").stdout)["findings"][0]["code"] == "TIE101"
    assert json.loads(run(*subject, "sarif").stdout)["version"] == "2.1.0"
    assert run(*subject, "github").stdout.startswith("::error title=TIE101 half-tied::Autoencoder: ")
    assert run(*subject, "html").stdout.startswith("<!doctype html>")
    assert run("check", "own_models:clean", "--format", "github").stdout == ""


def test_codes(run):
    assert run("check", "own_models:Autoencoder", "--ignore", "TIE101").exit_code == 0
    assert run("check", "own_models:Autoencoder", "--ignore", "TIE2,TIE4").exit_code == 1
    assert run("check", "own_models:Autoencoder", "--select", "TIE2").exit_code == 0


# -- pyproject.toml ------------------------------------------------------------------------------------------


def configure(text: str) -> None:
    Path("pyproject.toml").write_text(text)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib came with Python 3.11")
def test_settings_stand_in_pyproject(run):
    configure('[tool.tied]\nignore = ["TIE101"]\nformat = "json"\n')
    result = run("check", "own_models:Autoencoder")
    assert (result.exit_code, json.loads(result.stdout)["findings"]) == (0, [])
    assert run("check", "own_models:Autoencoder", "--ignore", "TIE2").exit_code == 1
    assert run("check", "own_models:Autoencoder", "--format", "text").stdout.startswith("Autoencoder:")
    configure('[tool.tied]\nselect = ["TIE4"]\n')
    assert run("check", "own_models:Autoencoder").exit_code == 0
    configure("[tool.other]\nx = 1\n")
    assert run("check", "own_models:Autoencoder").exit_code == 1


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib came with Python 3.11")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[tool.tied]\nignored = []\n", "[tool.tied] has no 'ignored'; it knows format, select and ignore"),
        ('[tool.tied]\nignore = "TIE101"\n', "[tool.tied] ignore must be a list of codes, not 'TIE101'"),
        ("[tool.tied]\nignore = [\n", "pyproject.toml: "),
        ('[tool.tied]\nignore = ["TIE999"]\n', "[tool.tied] ignore: No rule begins with 'TIE999'."),
        ("[tool.tied]\nselect = [101]\n", "[tool.tied] select must be a list of codes, not [101]"),
        (
            '[tool.tied]\nformat = "xml"\n',
            "[tool.tied] format must be one of text, json, sarif, github, html",
        ),
    ],
)
def test_wrong_settings_are_refused(run, text, message):
    configure(text)
    result = run("check", "own_models:Autoencoder")
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


# -- rules ---------------------------------------------------------------------------------------------------


def test_rules(run):
    lines = run("rules").stdout.splitlines()
    assert lines[0].split()[:3] == ["TIE101", "error", "half-tied"]
    result = run("rules", "tie101")
    assert result.exit_code == 0
    assert result.stdout.startswith("TIE101 half-tied (error)\n")
    result = run("rules", "TIE000")
    assert (result.exit_code, result.stderr) == (2, "tied rules: there is no TIE000; `tied rules` lists all\n")


TIE101 = """\
TIE101 half-tied (error)

Two Parameters lie over one memory. Values stay equal, so no test of equality sees it; Adam steps
the memory twice, weight decay counts twice, and the next cast or copy parts the two.

Example:
    model = Autoencoder()
    model.decoder.weight = nn.Parameter(model.encoder.weight.t())
    tied.check(model)  # TIE101

    tied.adopt(model, half_tied=True)
    tied.check(model)  # no finding

Fix: Declare the tie: `tied.adopt(model, half_tied=True)` keeps one Parameter for each memory. Then
build the optimizer anew, and in the source write the tie in place of the second Parameter.

Read on: docs/rules.md#tie101-half-tied
"""


@pytest.mark.parametrize("code", ["TIE101", "tie101", "101"])
def test_one_rule_is_explained(run, code):
    assert run("rules", code).stdout == TIE101


@pytest.mark.parametrize("rule", RULES.values(), ids=lambda rule: rule.code)
def test_every_rule_says_why_and_has_an_example_and_a_fix(run, rule):
    (said,) = json.loads(run("rules", rule.code, "--json").stdout)
    assert {name: said[name] for name in ("code", "title", "severity", "sentence")} == vars(rule)
    assert len(said["why"].split()) > 5
    assert rule.code in said["example"].replace("finding.code", "")
    assert "codes(" not in said["example"]
    assert len(said["fix"].split()) > 2
    for part in (said["why"], said["fix"]):
        assert part.endswith((".", "`"))
        assert not re.search(r"\]\(|\*\w[^`]*\w\*|```|\n", part)
    lines = run("rules", rule.code).stdout.splitlines()
    assert max(map(len, (line for line in lines if not line.startswith("    ")))) <= 100


@pytest.mark.parametrize(
    "command", [["--help"], ["check", "--help"], ["rules"], ["rules", "TIE101"], ["rules", "--json"]]
)
def test_torch_is_not_loaded_for_it(command):
    lines = [
        "import sys",
        f"sys.argv = ['tied', *{command!r}]",
        "from tied.cli import main",
        "try:",
        "    main()",
    ]
    code = "\n".join([*lines, "except SystemExit:", "    assert 'torch' not in sys.modules"])
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=environment)


def test_the_rules_that_begin_alike(run):
    every, some = (run("rules", *code).stdout.splitlines() for code in ([], ["tie1"]))
    assert [line.split()[0] for line in some] == [line.split()[0] for line in every if line.startswith("TIE1")]
    assert len(every) > len(some) > 1
