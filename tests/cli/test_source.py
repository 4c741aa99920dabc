"""`tied check` of source code: formats, several subjects, exit statuses, without torch; the hooks and the action."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from typer.testing import CliRunner

from tied.cli import app

ROOT = Path(__file__).parents[2]
WRONG = "import torch.nn as nn\n\ndef tie(model):\n    model.b.weight = nn.Parameter(model.a.weight.t())\n"
RIGHT = "import torch\n"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the command in a folder of code and checkpoints."""
    monkeypatch.chdir(tmp_path)
    Path("wrong.py").write_text(WRONG)
    Path("right.py").write_text(RIGHT)
    Path("broken.py").write_text("def (\n")
    weight = torch.rand(300, 64)
    save_file({"a": weight, "b": weight.clone()}, "twice.safetensors")
    save_file({"a": weight}, "once.safetensors")
    return lambda *args: CliRunner().invoke(app, ["check", *args])


def test_every_format_says_file_and_line(run):
    assert run("wrong.py").stdout.splitlines()[2] == "wrong.py:4: error TIE601 Parameter over another"
    (found,) = json.loads(run("wrong.py", "--format", "json").stdout)["findings"]
    assert (found["code"], found["file"], found["line"]) == ("TIE601", "wrong.py", 4)
    (result,) = json.loads(run("wrong.py", "--format", "sarif").stdout)["runs"][0]["results"]
    expected = {"artifactLocation": {"uri": "wrong.py"}, "region": {"startLine": 4}}
    assert result["locations"][0]["physicalLocation"] == expected
    assert run("wrong.py", "--format", "github").stdout.startswith("::error file=wrong.py,line=4,title=TIE601 ")
    assert "<h2>wrong.py:4: error TIE601" in run("wrong.py", "--format", "html").stdout


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["right.py"], 0),
        (["wrong.py"], 1),
        (["right.py", "wrong.py"], 1),
        (["broken.py", "wrong.py"], 1),
        (["broken.py", "right.py"], 2),
        (["broken.py", "right.py", "--ignore", "TIE600"], 0),
        (["wrong.py", "--ignore", "TIE6"], 0),
        (["wrong.py", "--select", "TIE602"], 0),
        (["once.safetensors", "right.py"], 0),
        (["twice.safetensors", "right.py"], 1),
        (["."], 1),
    ],
)
def test_exit_statuses(run, arguments, status):
    result = run(*arguments)
    assert (result.exit_code, result.stderr) == (status, "")


def test_one_file_that_cannot_be_looked_at(run):
    result = run("broken.py")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("tied check: The file could not be looked at.\n  found:    line 1: it ")
    result = run("write.py")
    said = "tied check: no such file or folder: 'write.py'; did you mean 'right.py'?\n"
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", said)
    assert run("write.py", "right.py").stdout.splitlines()[2] == "write.py:1: error TIE600 not looked at"


def test_arguments_of_a_factory_and_proofs_are_refused(run):
    assert run("wrong.py", "--arg", "x=1").stderr == "tied check: --arg is for a factory, and a file has none\n"
    result = run("wrong.py", "right.py", "--format", "html", "once.safetensors")
    assert (result.exit_code, result.stderr) == (2, "tied check: --format html is a page for one subject\n")


def test_files_of_code_share_one_report_and_checkpoints_have_their_own(run):
    arguments = ["twice.safetensors", "wrong.py", "once.safetensors", "right.py"]
    reports = json.loads(run(*arguments, "--format", "json").stdout)
    assert [report["subject"] for report in reports] == ["wrong.py, right.py", "twice.safetensors", "once.safetensors"]
    log = json.loads(run(*arguments, "--format", "sarif").stdout)
    assert [len(part["results"]) for part in log["runs"]] == [1, 1, 0]
    lines = run(*arguments, "--format", "github").stdout.splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["::error", "::warning"]
    text = run(*arguments).stdout
    assert [line.partition(":")[0] for line in text.splitlines() if "file" in line or "parameters" in line] == [
        "wrong.py, right.py",
        "twice.safetensors",
        "once.safetensors",
    ]


@pytest.mark.parametrize("subject", ["wrong.py", "code"])
def test_torch_is_not_loaded_for_it(subject, run):
    Path("code").mkdir()
    Path("code/wrong.py").write_text(WRONG)
    lines = [
        "import sys",
        f"sys.argv = ['tied', 'check', '{subject}']",
        "from tied.cli import main",
        "try:",
        "    main()",
    ]
    lines += [
        "except SystemExit as end:",
        "    assert end.code == 1, end",
        "    assert not {'torch', 'numpy'} & set(sys.modules)",
    ]
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True, capture_output=True, env=environment)


@pytest.mark.parametrize("code", ["TIE600", "TIE601", "TIE602", "TIE603", "TIE604", "TIE605", "TIE606"])
def test_rules_lead_to_their_sections(code):
    said = CliRunner().invoke(app, ["rules", code]).stdout.splitlines()
    anchor = said[-1].removeprefix("Read on: docs/rules.md#")
    headings = re.findall(r"^### (.*)$", (ROOT / "docs" / "rules.md").read_text(encoding="utf-8"), re.M)
    assert anchor in [heading.lower().replace(" ", "-") for heading in headings]


# -- hooks and the action -------------------------------------------------------------------------------------


def loaded(name: str):
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def shown(first_line: str):
    """The block of the guide that begins with a line."""
    page = (ROOT / "docs" / "guide" / "source.md").read_text(encoding="utf-8")
    (block,) = [block for block in re.findall(r"```yaml\n(.*?)```", page, re.S) if block.startswith(first_line)]
    return yaml.safe_load(block)


def entry(hook: dict, *files: str) -> list[str]:
    """What pre-commit runs for a hook."""
    command = hook["entry"].split()
    assert command[0] == "tied"
    return [*command[1:], *hook.get("args", []), *files]


def test_hooks_look_at_the_files_that_they_get(run):
    hooks = {hook["id"]: hook for hook in loaded(".pre-commit-hooks.yaml")}
    for hook in hooks.values():
        assert {"id", "name", "entry", "language"} <= hook.keys()
    invoke = CliRunner().invoke
    assert invoke(app, entry(hooks["tied"], "wrong.py", "right.py")).exit_code == 1
    assert invoke(app, entry(hooks["tied"], "right.py")).exit_code == 0
    assert hooks["tied"]["types"] == ["python"]
    assert invoke(app, entry(hooks["tied-safetensors"], "once.safetensors", "twice.safetensors")).exit_code == 1
    assert invoke(app, entry(hooks["tied-safetensors"], "once.safetensors")).exit_code == 0
    names = ["a/model.safetensors", "model.safetensors.index.json", "model.py"]
    assert [bool(re.search(hooks["tied-safetensors"]["files"], name)) for name in names] == [True, False, False]


def test_the_guide_names_hooks_that_are_there():
    (repository,) = shown("# .pre-commit-config.yaml")["repos"]
    assert [hook["id"] for hook in repository["hooks"]] == [hook["id"] for hook in loaded(".pre-commit-hooks.yaml")]


def test_the_guide_uses_the_action_as_it_is():
    (*_, step) = shown("# .github/workflows/tied.yml")["jobs"]["tied"]["steps"]
    action = loaded("action.yml")
    assert step["uses"].partition("@")[0].endswith("/tied")
    assert step["with"].keys() <= action["inputs"].keys()


@pytest.mark.parametrize(
    ("paths", "ignore", "status", "lines"),
    [
        (".", "TIE3,TIE600", 1, 1),
        ("right.py", "", 0, 0),
        ("right.py\nwrong.py\n", "", 1, 1),
        ("wrong.py", "TIE601", 0, 0),
        ("$(touch hacked) ; touch hacked", "", 2, 0),
        ("*.py", "", 2, 0),
    ],
)
def test_the_action_does_what_it_says(run, paths, ignore, status, lines):
    action = loaded("action.yml")
    assert action["runs"]["using"] == "composite"
    install, look = action["runs"]["steps"]
    assert "$GITHUB_ACTION_PATH" in install["run"]
    values = {name: one["default"] for name, one in action["inputs"].items()} | {"paths": paths, "ignore": ignore}
    given = {
        name: re.sub(r"\$\{\{ inputs\.(\w+) \}\}", lambda m: values[m[1]], text) for name, text in look["env"].items()
    }
    assert "${{" not in look["run"]  # what a workflow gives comes by the environment, and is never a command
    environment = {**os.environ, **given, "PATH": f"{Path('bin').absolute()}:{os.environ['PATH']}"}
    Path("bin").mkdir()
    Path("bin/tied").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tied "$@"\n')
    Path("bin/tied").chmod(0o755)
    done = subprocess.run(
        ["bash", "-e", "-c", look["run"]], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, len(done.stdout.splitlines())) == (status, lines), done.stderr
    assert not Path("hacked").exists()
