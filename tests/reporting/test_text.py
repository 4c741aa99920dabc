"""A report as text, HTML, SARIF and GitHub commands; whole texts are pinned."""

import copy
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import Parameter
from torch.optim import AdamW

import tied
from tied import Finding, Group, Report
from tied.reporting.text import entry_of, size_text, to_fragment, to_github, to_html, to_sarif, to_text


class Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(784, 256)
        self.decoder = nn.Linear(256, 784)


def half_tied() -> nn.Module:
    model = Autoencoder()
    model.decoder.weight = Parameter(model.encoder.weight.t())
    return model


class LanguageModel(nn.Module):
    """One of everything."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(500, 64, padding_idx=0)
        layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True, dropout=0.0)
        self.layers = nn.ModuleList([layer, layer, copy.deepcopy(layer), nn.Linear(64, 64)])
        for parameter in self.layers[2].parameters():
            nn.init.normal_(parameter)
        self.layers.append(copy.deepcopy(self.layers[2]))
        self.query = nn.Linear(64, 64, bias=False)
        self.fused = nn.Linear(64, 192, bias=False)
        self.query.weight = Parameter(self.fused.weight.detach()[:64].clone())
        self.scaled = Parameter(0.5 * self.layers[3].weight.detach())
        self.head = nn.Linear(64, 500)
        self.head.weight = self.embed.weight
        buffer = torch.randn(40)
        self.left, self.right = Parameter(buffer[:30]), Parameter(buffer[20:])

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(tokens)
        for layer in (*self.layers, self.layers[3], self.layers[3]):
            hidden = layer(hidden)
        return self.head(hidden)


def everything() -> Report:
    model = LanguageModel()
    tied.tie(model, "query.weight", "fused.weight[64:128]")
    return tied.check(model, torch.zeros(1, 3, dtype=torch.long), optimizer=AdamW(model.parameters()))


SOURCE = """\
import torch.nn as nn
import torch.nn.functional as F


class Model(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(8, 4), nn.Linear(4, 8)
        self.down = nn.ModuleList(nn.Linear(8, 8) for _ in range(n))
        self.up = nn.ModuleList([nn.Linear(8, 8)] * n)
        for down, up in zip(self.down, reversed(self.up)):
            up.weight = nn.Parameter(down.weight.t())
        self.decoder.weight.data = self.encoder.weight.data.t()
        self.decoder.weight = self.encoder.weight.t()

    def forward(self, x):
        self.decoder.weight.data.copy_(self.encoder.weight.data.t())
        return F.linear(self.encoder(x), self.encoder.weight.data.t())
"""

REPORTS = {
    "half-tied": lambda: tied.check(half_tied()),
    "everything": everything,
    "clean": lambda: tied.check(Autoencoder()),
    "empty": lambda: tied.check(nn.Identity()),
}


@pytest.mark.parametrize("name", REPORTS)
def test_text(name, golden):
    golden(f"check-{name}.txt", str(REPORTS[name]()))


def test_html(golden):
    golden("check-half-tied.html", to_html(REPORTS["half-tied"]()))


def test_sarif(golden):
    golden("check-everything.sarif", json.dumps(everything().to_sarif(), indent=1) + "\n")


def test_github(golden):
    golden("check-everything-github.txt", to_github(everything()))


# -- source code -------------------------------------------------------------------------------------------


@pytest.fixture
def code(tmp_path, monkeypatch):
    """The report about two files, one of which does not parse."""
    monkeypatch.chdir(tmp_path)
    Path("my models").mkdir()
    Path("my models/broken.py").write_text("def broken(:\n")
    Path("my models/wrong.py").write_text(SOURCE)
    return tied.check("my models")


def test_source_code(code, golden):
    golden("check-source.txt", str(code))
    golden("check-source.json", json.dumps(code.to_json(), indent=1) + "\n")
    golden("check-source.sarif", json.dumps(code.to_sarif(), indent=1) + "\n")
    golden("check-source-github.txt", to_github(code))
    golden("check-source.html", to_html(code))


def test_source_code_without_findings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("right.py").write_text("import torch\n")
    assert str(tied.check("right.py")) == "right.py: 1 source file\n\nNo findings."


def test_no_line_is_wider_than_it_must_be():
    lines = str(everything()).split("\n")
    assert all(len(line) <= 100 for line in lines if not line.startswith("  fix: "))


# -- hostile names -----------------------------------------------------------------------------------------

HOSTILE = "a\x1b[2J\r\n<script>alert(1)</script>::error::x%0A\u202egnp"


def hostile() -> Report:
    group = Group("tied", (HOSTILE, "b"), ("identity", "identity"), (2, 2), "float32", 16)
    finding = Finding("TIE101", "error", (HOSTILE,), f"{HOSTILE} is odd.", f"rm {HOSTILE}")
    return Report(HOSTILE, (group,), (finding,), 4, 16, 16, (HOSTILE,))


def test_names_cannot_command_a_terminal():
    text = to_text(hostile())
    assert all(char.isprintable() or char == "\n" for char in text)
    assert "\\x1b[2J\\r\\n<script>" in text


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.add(tag)


@pytest.mark.parametrize("write", [to_html, to_fragment])
def test_names_cannot_bring_markup(write):
    tags = Tags()
    tags.feed(write(hostile()))
    assert "script" not in tags.seen
    assert "&lt;script&gt;" in write(hostile())


def test_names_cannot_bring_commands_of_github():
    (line,) = to_github(hostile()).split("\n")
    assert line.startswith("::error title=TIE101 half-tied::a")
    assert "\r" not in line
    assert "x%250A" in line


# -- SARIF -------------------------------------------------------------------------------------------------


def test_sarif_says_where():
    report = REPORTS["half-tied"]()
    (run,) = to_sarif(report, "models/a.safetensors")["runs"]
    (result,) = run["results"]
    assert result["level"] == "error"
    (location,) = result["locations"]
    assert location["physicalLocation"] == {"artifactLocation": {"uri": "models/a.safetensors"}}
    assert [place["fullyQualifiedName"] for place in location["logicalLocations"]] == [
        "Autoencoder::encoder.weight",
        "Autoencoder::decoder.weight",
    ]
    assert [rule["id"] for rule in run["tool"]["driver"]["rules"]] == ["TIE101"]
    assert "physicalLocation" not in to_sarif(report)["runs"][0]["results"][0]["locations"][0]


# -- limits ------------------------------------------------------------------------------------------------


def test_long_lists_are_cut_and_counted():
    many = tuple(f"layer.{i * i}.weight" for i in range(30))
    group = Group("tied", many, ("identity",) * 30, (2, 2), "float32", 16)
    findings = tuple(Finding("TIE101", "error", many[:2], f"number {i}.", "") for i in range(50))
    text = to_text(Report("Model", (group,) * 60, findings, 4, 16, 0))
    assert "... and 21 more" in text
    assert "... and 20 more groups" in text
    assert "... and 10 more findings" in text
    assert text.endswith("50 errors.")
    nine = Group("tied", many[:10], ("identity",) * 10, (2, 2), "float32", 16)
    assert "more" not in to_text(Report("Model", (nine,)))


COUNTED = {
    ("a.0.w", "a.1.w", "a.2.w", "a.3.w"): ["a.1.w … a.3.w = a.0.w"],
    ("a.0.w", "a.2.w", "a.4.w", "a.6.w"): ["a.2.w, a.4.w … a.6.w = a.0.w"],
    ("a.0.w", "a.1.w", "a.2.w"): ["a.1.w = a.0.w", "a.2.w = a.0.w"],
    ("a.0.w", "a.1.w", "a.2.w", "a.3.v"): ["a.1.w = a.0.w", "a.2.w = a.0.w", "a.3.v = a.0.w"],
    ("h.w", "b.9.w", "b.10.w", "b.11.w", "b.13.w"): ["b.9.w … b.11.w = h.w", "b.13.w = h.w"],
    ("a.3.w", "a.10.w", "a.1.w", "b.0.w", "a.2.w", "a.0.w"): [
        "a.0.w … a.2.w = a.3.w",
        "a.10.w = a.3.w",
        "b.0.w = a.3.w",
    ],
    ("h", "a.1.b.1", "a.2.b.2", "a.3.b.3"): ["a.1.b.1 = h", "a.2.b.2 = h", "a.3.b.3 = h"],
    ("h", "a.1", "a.1", "a.1"): ["a.1 = h"] * 3,
}


@pytest.mark.parametrize("names", COUNTED)
def test_names_that_count_up_are_one_line(names):
    assert entry_of(Group("tied", names, ("identity",) * len(names))).others == tuple(COUNTED[names])


def test_names_that_count_up_and_are_not_alike_are_not_one_line():
    group = Group("tied", ("q", "a.0", "a.1", "a.2", "a.3"), ("identity", "[:2]", "[2:4]", "[4:]", "[4:]"))
    assert entry_of(group).others == ("a.0 = q[:2]", "a.1 = q[2:4]", "a.2 = q[4:]", "a.3 = q[4:]")


def test_modules_are_all_that_is_in_them():
    parts = (Group("tied", ("net.a", "best.a"), ("identity",) * 2),)
    entry = entry_of(Group("tied", ("net", "best"), ("identity",) * 2, parts=parts))
    assert (entry.first, entry.others) == ("net.*", ("best.* = net.*",))


def test_notebooks_get_html():
    assert REPORTS["half-tied"]()._repr_html_().startswith("<div><p>Autoencoder</p><p>201,744 parameters")


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1, "1 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (2**20, "1.0 MiB"), (5 * 2**40, "5.0 TiB")],
)
def test_sizes(size, text):
    assert size_text(size) == text
