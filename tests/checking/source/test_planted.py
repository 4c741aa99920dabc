"""Pieces of code as people write them: every wrong line is found, with its code, and nothing else is."""

import ast
import re

import pytest
from planted_source import HEAD, NEGATIVES, POSITIVES

from tied.checking.source.look import RULES, found_in
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
