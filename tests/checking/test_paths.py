"""What a path means: source code, a checkpoint, or a folder of both."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import tied
from tied.checking.paths import look_at_path

WRONG = "import torch.nn as nn\n\ndef tie(model):\n    model.b.weight = nn.Parameter(model.a.weight.t())\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a file of code and a checkpoint, each with one finding."""
    weight = torch.rand(300, 64)
    save_file({"a": weight, "b": weight.clone()}, tmp_path / "model.safetensors")
    (tmp_path / "code.py").write_text(WRONG)
    return tmp_path


def codes(path: Path, **options) -> list[str]:
    return [one.code for one in look_at_path(path, **options).findings]


def test_a_file_of_code(folder: Path):
    report = tied.check(folder / "code.py")
    assert (report.subject, report.files, report.bytes) == (str(folder / "code.py"), 1, 0)
    assert [(one.code, one.line) for one in report.findings] == [("TIE601", 4)]
    assert tied.check(str(folder / "code.py")) == report


def test_a_checkpoint(folder: Path):
    assert codes(folder / "model.safetensors") == ["TIE301"]
    (folder / "code.py").unlink()
    report = look_at_path(folder)
    assert (report.files, [one.code for one in report.findings]) == (0, ["TIE301"])


def test_a_folder_of_code(folder: Path):
    (folder / "model.safetensors").unlink()
    (folder / "deep").mkdir()
    (folder / "deep" / "more.py").write_text(WRONG)
    report = look_at_path(folder)
    assert (report.subject, report.files, report.bytes) == (str(folder), 2, 0)
    assert [one.code for one in report.findings] == ["TIE601", "TIE601"]


def test_a_folder_of_both(folder: Path):
    report = look_at_path(folder)
    assert report.subject == str(folder / "model.safetensors")
    assert (report.files, report.parameters, len(report.groups)) == (1, 38_400, 1)
    assert [(one.code, Path(one.file).name) for one in report.findings] == [("TIE301", ""), ("TIE601", "code.py")]
    assert codes(folder, select=["TIE6"]) == ["TIE601"]
    assert codes(folder, ignore=["TIE6"]) == ["TIE301"]


@pytest.mark.parametrize("other", ["model2.safetensors", "model.safetensors.index.json"])
def test_code_is_looked_at_where_the_checkpoint_cannot_be(folder: Path, other: str):
    (folder / "model.safetensors").rename(folder / "model1.safetensors")
    (folder / other).write_bytes(b"{}")
    report = look_at_path(folder)
    assert [one.code for one in report.findings] == ["TIE600", "TIE601"]
    assert (report.findings[0].file, report.findings[0].line) == (str(folder), 0)
    assert report.findings[0].message.startswith("Not looked at: ")
    assert codes(folder, ignore=["TIE600"]) == ["TIE601"]


def test_a_folder_of_neither(tmp_path: Path):
    with pytest.raises(tied.FileError, match="No checkpoint lies in this folder"):
        look_at_path(tmp_path)


def test_a_folder_whose_name_ends_like_code(folder: Path):
    path = folder.rename(folder.with_name("package.py"))
    assert codes(path) == ["TIE301", "TIE601"]


def test_a_file_that_is_not_there(tmp_path: Path):
    with pytest.raises(tied.FileError, match="it cannot be opened: No such file or directory"):
        tied.check(tmp_path / "gone.py")
