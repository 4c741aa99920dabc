"""Pieces of code as people write them: every wrong line is found, with its code, and nothing else is."""

import ast
import re
from pathlib import Path

import pytest
from planted_source import HEAD, NEGATIVES, POSITIVES

from tied.checking.source.look import RULES, found_in, look_at_source
from tied.checking.source.signs import signs_in

PIECES = POSITIVES | NEGATIVES
MARK = re.compile(r"#! (\d+)")
OR = re.compile(r"^# or, .*?: (?P<code>.*)$", re.M)


def marked(text: str) -> set[tuple[int, str]]:
    """The lines that are marked, with the codes of their marks."""
    lines = enumerate(text.splitlines(), 1)
    return {(number, f"TIE{code}") for number, line in lines for code in MARK.findall(line)}


@pytest.mark.parametrize("name", PIECES)
def test_exactly_the_marked_lines_are_found(name: str):
    text = HEAD + PIECES[name]
    assert {(one.line, one.code) for one in found_in(text)} == marked(text)


@pytest.mark.parametrize("name", POSITIVES)
def test_fixes_parse(name: str):
    for one in found_in(HEAD + POSITIVES[name]):
        assert one.fix
        ast.parse(one.fix)
        for other in OR.finditer(one.fix):
            ast.parse(other["code"])


@pytest.mark.parametrize("name", POSITIVES)
def test_a_comment_silences_each_line(name: str):
    text = HEAD + POSITIVES[name]
    for number, code in marked(text):
        lines = text.splitlines()
        lines[number - 1] += f"  # tied: ignore[TIE000, {code}]"
        left = {(one.line, one.code) for one in found_in("\n".join(lines))}
        assert left == marked(text) - {(number, code)}


@pytest.mark.parametrize("name", POSITIVES)
def test_the_signs_of_a_rule_are_in_every_text_that_breaks_it(name: str):
    text = HEAD + POSITIVES[name]
    assert {code for _, code in marked(text)} <= set(signs_in(text))


def test_every_rule_is_planted():
    planted = {code for text in POSITIVES.values() for _, code in marked(text)}
    assert planted == set(RULES)
    assert not any(marked(text) for text in NEGATIVES.values())


def test_a_piece_can_fail():
    wrong = HEAD + POSITIVES["raw"]
    assert marked(wrong)
    assert not found_in(wrong.replace(".t()", ".t().clone()"))


def test_the_library_itself_is_clean():
    """The recipes that it measures stand there on purpose, and say so; it looks into its own examples, too."""
    root = Path(__file__).parents[3]
    assert look_at_source(root / "src", root / "benchmarks").findings == ()
    recipes = (root / "src" / "tied" / "study" / "recipes.py").read_text(encoding="utf-8")
    loud = found_in(recipes.replace("# tied: ignore", "# "))
    assert [one.code for one in loud] == ["TIE603", "TIE601", "TIE602", "TIE604"]


LIBRARIES = ["torch", "transformers", "accelerate", "peft"]


@pytest.mark.slow
@pytest.mark.parametrize("name", LIBRARIES)
def test_libraries_have_no_more_findings_than_were_read(name: str):
    """Thousands of files that others wrote: nothing crashes, and what is found was read by hand and is so."""
    place = Path(pytest.importorskip(name).__file__).parent
    report = look_at_source(place, ignore=["TIE600"])
    assert report.files > 50
    found = {(Path(one.file).name, one.code, one.names) for one in report.findings}
    visual = "self.vision_model.visual.ln_post"
    half_tied = {("modeling_bridgetower.py", "TIE602", (f"ln.{at}", f"{visual}.{at}")) for at in ("weight", "bias")}
    assert found <= half_tied  # every layer norm of one list is pointed at the memory of another one
