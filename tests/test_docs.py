"""Everything that the README and `docs/` show is true: code runs, messages are exact, links lead somewhere.

How a page is read, from top to bottom; its blocks share one namespace and run in an empty folder:

- a ```python block is executed; warnings are errors; a failure shows page and line;
- a ```pycon block is a doctest: each shown result is compared;
- a ```python block right after the comment `<!-- raises -->` must raise, and the next ```text or ```console
  block must be what Python prints last: `tied.TieError: ...`, to the letter;
- any other block is not looked at;
- a relative link or picture, outside blocks, must lead to a file of the repository.
"""

import doctest
import re
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

FENCE = re.compile(r"^(?P<indent> *)```(?P<kind>\w*)[^\n]*\n(?P<code>.*?)^(?P=indent)```", re.S | re.M)
RAISES = re.compile(r"<!-- raises -->\s*\Z")
LINK = re.compile(r"!?\[[^\]]*\]\((?P<inline>[^)\s]+)[^)]*\)|<img[^>]*\bsrc=\"(?P<picture>[^\"]+)\"")
ELSEWHERE = re.compile(r"[a-z]+:|#")


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, its code, the line its code starts at, whether it must raise."""

    kind: str
    code: str
    line: int
    raises: bool


def blocks(text: str) -> Iterator[Block]:
    for fence in FENCE.finditer(text):
        line = text.count("\n", 0, fence.start("code")) + 1
        raises = bool(RAISES.search(text, 0, fence.start()))
        yield Block(fence["kind"], dedent(fence["code"]), line, raises)


def run_page(page: Path) -> None:
    """Run all blocks of a page in their order."""
    names: dict[str, object] = {"__name__": "__docs__"}
    message, due = "", False
    for block in blocks(page.read_text(encoding="utf-8")):
        if due:
            compare_message(page, block, message)
            due = False
        elif block.raises:
            message, due = message_of(page, block, names), True
        elif block.kind == "python":
            run_python(page, block, names)
        elif block.kind == "pycon":
            run_pycon(page, block, names)
    assert not due, f"{page.name}: no text block with the error's message after the last `<!-- raises -->`"


def run_python(page: Path, block: Block, names: dict[str, object]) -> None:
    """Execute a block as if the page were the file, so that a traceback points into the page."""
    exec(compile("\n" * (block.line - 1) + block.code, str(page), "exec"), names)


def run_pycon(page: Path, block: Block, names: dict[str, object]) -> None:
    test = doctest.DocTestParser().get_doctest(block.code, names, page.name, str(page), block.line - 1)
    said: list[str] = []
    failed, _ = doctest.DocTestRunner(verbose=False).run(test, out=said.append, clear_globs=False)
    assert not failed, f"{page.name}:{block.line}\n{''.join(said)}"
    names.update(test.globs)


def message_of(page: Path, block: Block, names: dict[str, object]) -> str:
    """What Python prints last when the block fails; it is an error when it does not."""
    try:
        run_python(page, block, names)
    except Exception as error:
        return "".join(traceback.format_exception_only(error)).strip()
    return pytest.fail(f"{page.name}:{block.line}: marked `<!-- raises -->`, but nothing was raised")


def compare_message(page: Path, block: Block, message: str) -> None:
    where = f"{page.name}:{block.line}"
    assert block.kind in {"text", "console"}, f"{where}: expected the error's message in a text block"
    assert block.code.strip() == message, f"{where}: this is not the message"


def broken_links(page: Path) -> list[str]:
    """The relative links of a page that lead to no file."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    links = [link["inline"] or link["picture"] for link in LINK.finditer(text)]
    inside = [link for link in links if not ELSEWHERE.match(link)]
    return [link for link in inside if not (page.parent / link.split("#")[0]).exists()]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    run_page(page)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path):
    assert not broken_links(page)


# The checks themselves: what is right passes, and each kind of wrong is seen


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that makes a page of a text in which ''' stands for the fence."""

    def page_of(text: str) -> Path:
        page = tmp_path / "page.md"
        page.write_text(text.replace("'''", "```"), encoding="utf-8")
        return page

    return page_of


RIGHT = """
'''python
x = 1
'''
- in a list

  '''python
  x += 1
  '''

'''pycon
>>> x
2
>>> y = x
'''
'''python
assert y == 2
'''

<!-- raises -->
'''python
raise ValueError("no\\nsuch thing")
'''

'''text
ValueError: no
such thing
'''

'''bash
exit 1
'''
"""

WRONG = {
    "a block that fails": ("'''python\n1 / 0\n'''", ZeroDivisionError, "division by zero"),
    "a block in a list": ("- a\n\n  '''python\n  1 / 0\n  '''", ZeroDivisionError, "division by zero"),
    "a warning": ("'''python\nimport warnings\nwarnings.warn('old')\n'''", UserWarning, "old"),
    "a wrong result": ("\n\n'''pycon\n>>> 1 + 1\n3\n'''", AssertionError, r"page.md:4(.|\n)*Expected:\n +3"),
    "no error": ("<!-- raises -->\n'''python\n1\n'''\n'''text\nE\n'''", pytest.fail.Exception, "nothing was"),
    "no message": ("<!-- raises -->\n'''python\n1 / 0\n'''", AssertionError, "no text block"),
    "code where the message should be": (
        "<!-- raises -->\n'''python\n1 / 0\n'''\n'''python\n1\n'''",
        AssertionError,
        "expected the error's message",
    ),
    "another message": (
        "<!-- raises -->\n'''python\n1 / 0\n'''\n'''text\nZeroDivisionError: oh\n'''",
        AssertionError,
        "page.md:6: this is not the message",
    ),
}


def test_right_page_passes(write: Callable[[str], Path]):
    run_page(write(RIGHT))


@pytest.mark.parametrize("case", WRONG)
def test_wrong_page_fails(write: Callable[[str], Path], case: str):
    text, error, words = WRONG[case]
    with pytest.raises(error, match=words):
        run_page(write(text))


def test_failure_shows_page_and_line(write: Callable[[str], Path]):
    page = write("# Title\n\n'''python\nx = 1\nx / 0\n'''")
    with pytest.raises(ZeroDivisionError) as caught:
        run_page(page)
    last = traceback.extract_tb(caught.value.__traceback__)[-1]
    assert (last.filename, last.lineno) == (str(page), 5)


def test_links_are_read(write: Callable[[str], Path]):
    here = "[a](page.md#top) ![b](page.md 'title') [c](https://example.org/x) [d](#top)"
    gone = "[a](gone.md) ![b](gone.png) <img alt='c' src=\"gone.svg\">\n'''text\n[d](shown.md)\n'''"
    assert broken_links(write(here)) == []
    assert broken_links(write(gone)) == ["gone.md", "gone.png", "gone.svg"]
