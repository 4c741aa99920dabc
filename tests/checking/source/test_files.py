"""Files and folders: which are looked at, how they are decoded, and what cannot be looked at is said."""

import os
from pathlib import Path

import pytest

import tied
from tied.checking.source.files import MOST_BYTES, SHORT, python_files
from tied.checking.source.look import look_at_source

WRONG = "import torch.nn as nn\n\ndef tie(model):\n    model.b.weight = nn.Parameter(model.a.weight.t())\n"


def places(path: Path, **options) -> list[tuple[str, int, str]]:
    found = look_at_source(path, **options).findings
    return [(Path(one.file).relative_to(path).as_posix(), one.line, one.code) for one in found]


def write(path: Path, content: str | bytes = WRONG) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# -- which files ---------------------------------------------------------------------------------------------


def test_a_folder_is_walked_in_order(tmp_path: Path):
    for name in ("b.py", "a.py", "deep/er/c.py", "deep/d.py", "text.txt", "e.pyi", "no.py.bak"):
        write(tmp_path / name)
    expected = ["a.py", "b.py", "deep/d.py", "deep/er/c.py"]
    assert places(tmp_path) == [(name, 4, "TIE601") for name in expected]
    assert look_at_source(tmp_path).files == 4


def test_installed_and_hidden_folders_are_left_out(tmp_path: Path):
    for folder in (".git", ".venv/lib", "__pycache__", "lib/site-packages/torch", "node_modules/x", "env/lib"):
        write(tmp_path / folder / "a.py")
    write(tmp_path / "env" / "pyvenv.cfg", "home = /usr")
    write(tmp_path / "own" / "a.py")
    assert places(tmp_path) == [("own/a.py", 4, "TIE601")]
    assert places(tmp_path / "lib" / "site-packages") == [("torch/a.py", 4, "TIE601")]  # when it is named


def test_links_that_lead_in_circles_end(tmp_path: Path):
    write(tmp_path / "in" / "a.py")
    (tmp_path / "in" / "again").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "in" / "self.py").symlink_to(tmp_path / "in" / "self.py")
    found = places(tmp_path)
    assert found == [("in/a.py", 4, "TIE601"), ("in/self.py", 1, "TIE600")]


def test_a_file_named_twice_is_looked_at_once(tmp_path: Path):
    path = write(tmp_path / "a.py")
    report = look_at_source(path, tmp_path, path)
    assert (report.files, len(report.findings)) == (1, 1)
    assert report.subject == f"{path}, {tmp_path}, {path}"


def test_an_empty_folder_and_an_empty_file(tmp_path: Path):
    assert list(python_files(tmp_path)) == []
    write(tmp_path / "a.py", "")
    assert look_at_source(tmp_path).ok


# -- how they are decoded ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        WRONG.encode("utf-8-sig"),
        b"# -*- coding: latin-1 -*-\n# caf\xe9\n"
        + WRONG.split("\n", 2)[0].encode()
        + b"\n"
        + WRONG.split("\n", 2)[2].encode(),
        WRONG.replace("\n", "\r\n").encode(),
        WRONG.replace("\n", "\r").encode(),
        WRONG.replace("\n\n", "\n\f\n").encode(),
        ("# -*- coding: cp1251 -*-\n# вес\n" + WRONG).encode("cp1251"),
        ("# вес 重み ⚖\n" + WRONG).encode(),
    ],
    ids=["BOM", "latin-1", "CRLF", "CR", "form feed", "cp1251", "UTF-8"],
)
def test_every_encoding_is_read(tmp_path: Path, content: bytes):
    found = places(write(tmp_path / "a.py", content).parent)
    assert [code for _, _, code in found] == ["TIE601"]


@pytest.mark.parametrize(
    ("content", "line", "said"),
    [
        (b"x = 1\ny = '\xff'\n", 2, "a byte is not utf-8"),
        (b"# coding: no-such\nx = 1\n", 1, "its encoding is not known: unknown encoding: no-such"),
        (b"x = 1\n\0\n", 2, "it holds a NUL byte"),
        (b"import torch\ndef broken(:\n", 2, "it does not parse: invalid syntax"),
        (b"  x = 1\n", 1, "it does not parse: unexpected indent"),
        (
            b"print 'Python 2'\n",
            1,
            "it does not parse: Missing parentheses in call to 'print'. Did you mean print(...)?",
        ),
        (b"x = (" * 500, 1, "it does not parse: too many nested parentheses"),
        (WRONG.encode() + b"x = " + b"-" * 100_000 + b"1", 1, "it is nested too deeply to be parsed"),
        (b"x = '''", 1, "it does not parse: unterminated triple-quoted string literal (detected at line 1)"),
        (b"x" * 10 + b" = 1\n" * (MOST_BYTES // 5 + 9), 1, "it is larger than 4 MiB"),
    ],
)
def test_what_cannot_be_looked_at_is_named_and_the_others_looked_at(
    tmp_path: Path, content: bytes, line: int, said: str
):
    write(tmp_path / "a.py")
    path = write(tmp_path / "b.py", content)
    write(tmp_path / "c.py")
    report = look_at_source(tmp_path)
    assert [Path(one.file).name for one in report.findings] == ["a.py", "b.py", "c.py"]
    found = report.findings[1]
    assert (found.code, found.severity, found.file, found.line) == ("TIE600", "error", str(path), line)
    assert found.message == f"Not looked at: {said}."
    assert not report.ok


def test_nothing_but_ignoring_it_hides_what_was_not_looked_at(tmp_path: Path):
    write(tmp_path / "a.py", "def (\n")
    assert places(tmp_path, select=["TIE606"]) == [("a.py", 1, "TIE600")]
    assert places(tmp_path, ignore=["TIE600"]) == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_does_not_wait(tmp_path: Path):
    os.mkfifo(tmp_path / "a.py")
    (found,) = look_at_source(tmp_path).findings
    assert found.message == "Not looked at: it is not a regular file."


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser reads everything")
def test_a_file_that_nobody_may_read(tmp_path: Path):
    write(tmp_path / "a.py").chmod(0)
    (found,) = look_at_source(tmp_path).findings
    assert found.message == "Not looked at: it cannot be opened: Permission denied."


def test_one_file_that_cannot_be_looked_at_is_an_error(tmp_path: Path):
    path = write(tmp_path / "a.py", "x = 1\ndef (\n")
    with pytest.raises(tied.FileError) as caught:
        tied.check(path)
    assert str(caught.value) == (
        f"check({str(path)!r})\n"
        "  The file could not be looked at.\n"
        "  found:    line 2: it does not parse: invalid syntax.\n"
        "  expected: Python source code that this Python parses\n"
        "  fix:      mend the file, or leave it out\n"
        "Nothing was written."
    )


def test_a_long_file_without_a_sign_is_not_parsed(tmp_path: Path):
    """But where somebody names it, it is; and so is a long one with a sign."""
    quiet = write(tmp_path / "quiet.py", "x = 1\n" * SHORT + "def (\n")
    assert places(tmp_path) == []
    with pytest.raises(tied.FileError):
        tied.check(quiet)
    write(quiet, WRONG + "x = 1\n" * SHORT + "def (\n")
    assert places(tmp_path) == [("quiet.py", SHORT + 5, "TIE600")]


# -- shapes that break walkers --------------------------------------------------------------------------------

DEEP = {
    "a chain of elif": "if x == 0:\n    pass\n" + "".join(f"elif x == {n}:\n    pass\n" for n in range(1500)),
    "a sum": "x = " + " + ".join(["1"] * 700),
    "attributes": "x = y" + ".z" * 700,
    "calls": "x = y" + ".t()" * 700,
    "names that lead to names": "".join(f"a{n + 1} = a{n}\n" for n in range(2000)),
    "a name that leads to itself": "a = a\nb = c\nc = b\nfor x in x:\n    x = x\n",
    "loops in loops": "".join("    " * n + f"for x{n} in x{n + 1}:\n" for n in range(18)) + "    " * 18 + "pass\n",
    "functions in functions": "".join("  " * n + f"def f{n}(a):\n" for n in range(90)) + "  " * 90 + "pass\n",
    "lambdas": "f = " + "lambda: " * 150 + "0\n",
    "brackets": "x = " + "[" * 90 + "]" * 90 + "\n",
    "a class of itself": "class A(A):\n    def __init__(self):\n        self.a = A()\nx = nn.ModuleList([A()] * 3)\n",
    "classes of each other": (
        "class A(B):\n    def __init__(self):\n        self.b = B()\n"
        "class B(A):\n    def __init__(self):\n        self.a = A()\nx = [A()] * 3\n"
    ),
}


@pytest.mark.parametrize("name", DEEP)
def test_deep_and_circular_code_ends(tmp_path: Path, name: str):
    write(tmp_path / "a.py", WRONG + DEEP[name] + "\nlast = [nn.Linear(2, 2)] * 3\n")
    found = places(tmp_path)
    assert [code for _, _, code in found][-2:] in (["TIE601", "TIE606"], ["TIE600"]), found


def test_too_deep_to_be_followed_is_said(tmp_path: Path):
    deep = "x = " + "-" * 3000 + "y\n"
    write(tmp_path / "a.py", WRONG + deep)
    codes = [code for _, _, code in places(tmp_path)]
    assert codes in (["TIE600"], ["TIE601"])
