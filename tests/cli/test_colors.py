"""Reports and rules on a terminal: colored by severity, wrapped at its width; elsewhere to the byte as ever."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from tied.checking.paths import look_at_path
from tied.reporting.rules import RULES

ROOT = Path(__file__).parents[2]
CODE = """\
import torch.nn as nn


def build(model, n):
    model.b.weight = nn.Parameter(model.a.weight.t())
    model.layers = nn.ModuleList([nn.Linear(8, 8)] * n)
"""
ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
COMMAND = [sys.executable, "-c", "from tied.cli import main; main()"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("model.py").write_text(CODE)


def environment(**more: str) -> dict[str, str]:
    known = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    return known | {"PYTHONPATH": str(ROOT / "src"), "TERM": "xterm-256color"} | more


def on_terminal(*arguments: str, columns: int = 80, **more: str) -> str:
    """Run a command on a terminal of its own; return what it prints to stdout."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    process = subprocess.Popen(
        [*COMMAND, *arguments], stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, env=environment(**more)
    )
    os.close(theirs)
    said = b""
    while True:
        try:
            piece = os.read(ours, 4096)
        except OSError:  # the end of it, on Linux
            piece = b""
        if not piece:
            break
        said += piece
    os.close(ours)
    assert process.communicate(timeout=60)[1] == b""
    return said.decode().replace("\r\n", "\n")


def piped(*arguments: str, **more: str) -> str:
    return subprocess.run(
        [*COMMAND, *arguments], env=environment(**more), capture_output=True, check=False
    ).stdout.decode()


def test_a_pipe_gets_the_report_to_the_byte():
    assert piped("check", "model.py") == f"{look_at_path('model.py')}\n"
    assert piped("check", "model.py", COLUMNS="40") == f"{look_at_path('model.py')}\n"
    Path("other").mkdir()
    Path("other/model.py").write_text(CODE)
    both = f"{look_at_path('model.py')}\n\n{look_at_path('other')}\n"
    first, second = piped("check", "model.py"), piped("check", "other")
    assert f"{first}\n{second}" == both
    assert piped("check", "model.py", "other") == both
    assert ESCAPE.sub("", on_terminal("check", "model.py", "other", columns=100)) == both
    width = max(len(rule.title) for rule in RULES.values())
    listed = [f"{one.code}  {one.severity:7}  {one.title:{width}}  {one.sentence}\n" for one in RULES.values()]
    assert piped("rules", COLUMNS="40") == "".join(listed)


def test_a_terminal_gets_it_colored_by_severity():
    said = on_terminal("check", "model.py", columns=100)
    assert ESCAPE.sub("", said) == f"{look_at_path('model.py')}\n"
    assert "\x1b[31mmodel.py:5: error TIE601 Parameter over another\x1b[0m\n" in said
    assert "\x1b[33mmodel.py:6: warning TIE606 one repeated\x1b[0m\n" in said
    assert said.endswith("\x1b[31m1 error, 1 warning.\x1b[0m\n")
    assert len(ESCAPE.findall(said)) == 6


@pytest.mark.parametrize("more", [{"NO_COLOR": "1"}, {"TERM": "dumb"}, {"NO_COLOR": "1", "FORCE_COLOR": "1"}], ids=str)
def test_color_can_be_declined(more):
    said = on_terminal("check", "model.py", columns=100, **more)
    assert said == f"{look_at_path('model.py')}\n"
    assert "\x1b" not in on_terminal("rules", "TIE101", **more)
    assert "\x1b" not in on_terminal("rules", **more)


def test_color_can_be_forced_and_keeps_the_usual_width():
    said = piped("check", "model.py", FORCE_COLOR="1")
    assert "\x1b[31m" in said
    assert ESCAPE.sub("", said) == piped("check", "model.py")


@pytest.mark.parametrize("columns", [40, 60])
def test_a_narrow_terminal_is_no_reason_to_break_words_or_fixes(columns):
    said = ESCAPE.sub("", on_terminal("check", "model.py", columns=columns))
    fixes = [line for finding in look_at_path("model.py").findings for line in finding.fix.splitlines()]
    assert all(fix in said for fix in fixes)
    others = [line for line in said.splitlines() if not any(fix in line for fix in fixes)]
    assert max(map(len, others)) <= max(
        columns, len("model.py:5: error TIE601 Parameter over another") * (columns > 60)
    )
    assert said.split() == str(look_at_path("model.py")).split()


@pytest.mark.parametrize("arguments", [["rules"], ["rules", "TIE112"]])
def test_rules_fit_the_terminal(arguments):
    said = ESCAPE.sub("", on_terminal(*arguments, columns=70))
    assert max(len(line) for line in said.splitlines() if not line.startswith("    ")) <= 70
    assert said.split() == piped(*arguments).split()
    assert "\x1b[31m" in on_terminal(*arguments)


def test_formats_for_machines_are_never_colored():
    for form in ("json", "sarif", "github", "html"):
        assert "\x1b" not in on_terminal("check", "model.py", "--format", form, FORCE_COLOR="1")
