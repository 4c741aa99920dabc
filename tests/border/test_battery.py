"""A tie is never worse than plain sharing, whatever tool takes the model: the battery, cell by cell.

A cell is right (the same tensors as its oracle's), or loud (an error of ours); anything else fails. The table in
`docs/guide/tools.md` is what was found here.
"""

import functools
import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from battery import TIES, TOOLS, Subject, Tool
from torch import Tensor

import tied

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script.* is deprecated:DeprecationWarning")  # torch's

PAGE = Path(__file__).parents[2] / "docs" / "guide" / "tools.md"
BEGIN, END = "<!-- battery: written by tests/border/test_battery.py -->\n", "<!-- end of the battery -->\n"


def tensors(found: Any) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else list(found)


@functools.cache
def outcome(tool: Tool, kind: str) -> str:
    """Return what a tool makes of a tied model: "right", the class of our error, or what is wrong."""
    try:
        expected = tensors(tool.act(tool.subject.oracle(kind)))
    except NotImplementedError:
        expected = []
    try:
        found = tensors(tool.act(tool.subject.tied(kind)))
    except tied.TieError as error:
        return f"[{type(error).__name__}](../errors.md#{type(error).__name__.lower()})" if error.fix else "no way out"
    except tied.TieWarning as said:  # warnings are errors here
        return "[TieWarning](../errors.md#tiewarning)" if "tied.untie(" in str(said) else "no way out"
    except Exception as error:
        name = f"{tool.needs or 'torch'}'s `{type(error).__name__}`"
        return name if name == tool.foreign else f"a foreign error: {name}: {str(error)[:200]}"
    same = len(found) == len(expected) and all(
        one.shape == other.shape and torch.allclose(one.double(), other.double(), rtol=1e-9, atol=1e-11)
        for one, other in zip(found, expected, strict=True)
    )
    return "right" if same else "silently wrong"


def is_missing(tool: Tool) -> bool:
    return bool(tool.needs) and importlib.util.find_spec(tool.needs) is None


@pytest.mark.parametrize("kind", TIES)
@pytest.mark.parametrize("tool", TOOLS, ids=str)
def test_right_or_loud(tool: Tool, kind: str) -> None:
    if is_missing(tool):
        pytest.skip(f"{tool.needs} is not installed")
    if tool.blind and kind != "identity":
        pytest.skip(f"it {tool.blind}")
    found = outcome(tool, kind)
    if kind == "identity" and not tool.plain_is_wrong:
        assert found == "right"
    assert found == "right" or found.startswith("[") or (found == tool.foreign and kind != "identity"), found


def test_the_battery_can_fail() -> None:
    """Copies in place of ties are found out."""
    (tool,) = (tool for tool in TOOLS if tool.name == "AdamW")

    def copied(kind: str) -> Any:
        model = tool.subject.tied(kind)
        tied.untie(model)
        return model

    wrong = replace(tool, subject=Subject(copied, tool.subject.oracle))
    assert {outcome(wrong, kind) for kind in TIES} == {"silently wrong"}


def cell(tool: Tool, kind: str) -> str:
    return tool.blind if tool.blind and kind != "identity" else outcome(tool, kind)


def table() -> str:
    text = f"| | tool | {' | '.join(TIES)} |\n|---|---|{'---|' * len(TIES)}\n"
    group = ""
    for tool in TOOLS:
        cells = [cell(tool, kind) for kind in TIES]
        text += f"| {tool.group if tool.group != group else ''} | {tool.name} | {' | '.join(cells)} |\n"
        group = tool.group
    return text


def test_the_table_in_the_docs(request: pytest.FixtureRequest) -> None:
    if any(map(is_missing, TOOLS)):
        pytest.skip("not every tool is installed")
    found, text = table(), PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    known, _, after = rest.partition(END)
    if request.config.getoption("--update-golden"):
        PAGE.write_text(before + BEGIN + found + END + after, encoding="utf-8", newline="\n")
        return
    assert known == found, "docs/guide/tools.md is behind: run `pytest --update-golden` and read the difference"
