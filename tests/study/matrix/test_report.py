"""What is made of outcomes: the table and the words, pinned; the page and the JSON, whole."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from tied.reporting.table import to_text
from tied.study.matrix import known_results
from tied.study.matrix.kinds import IDENTITY, TRANSPOSED
from tied.study.matrix.known_results import Expectation
from tied.study.matrix.report import Record, explanation, report, sentences, table
from tied.study.matrix.row import Outcome
from tied.study.matrix.rows import ROWS

ROOT = Path(__file__).parents[3]
FIXED = {
    "adam5": "wrong wrong wrong ok ok ok ok ok",
    "load_assign": "same same same ok ok ok ok wrong",
    "ckpt_disagree": "wrong wrong wrong refused refused refused refused refused",
    "deepcopy_dec": "ok ok wrong - ok ok ok ok",
    "vmap_ensemble": "same same wrong ok ok wrong ok ok",  # a fix is under way, but nothing differs
    "torchao_int8wo": " ".join(["not_run"] * 8),
    "fsdp1_layers": "wrong wrong error error error error error",  # one cell is missing
}
REASONS = {
    "wrong": "training: differs by 0.3 <here>",
    "error": "RuntimeError: no",
    "-": "this recipe has no second module",
}


@pytest.fixture
def record(monkeypatch) -> Record:
    """The outcomes of `FIXED`, on a torch for which something else is expected."""
    monkeypatch.setattr(torch, "__version__", "2.15.1+cpu")
    expected = {"load_assign": {"twice": "wrong", "tied.nn": "ok"}, "adam5": {"tied": "ok"}}
    rows = tuple(row for row in ROWS if row.name in FIXED)
    made = Record(rows, Expectation("2.13.0", {"transposed": expected}), elapsed_seconds=12.3)
    for row, states in FIXED.items():
        for column, word in zip(TRANSPOSED.columns, states.split(), strict=False):
            state = word.replace("_", " ")
            made.add(Outcome("transposed", row, column.key, state, REASONS.get(state, ""), (), 0.5))
    return made


def test_table(record, golden):
    text = to_text(table(record, TRANSPOSED))
    assert max(map(len, text.splitlines())) <= 100
    golden("matrix-table.txt", text + "\n")


def test_the_whole_table_is_one_block_of_100_columns(record):
    everything = Record(ROWS, record.expectation)
    for kind in (TRANSPOSED, IDENTITY):
        for row in ROWS:
            for column in kind.columns:
                everything.add(Outcome(kind.name, row.name, column.key, "not run"))
        lines = to_text(table(everything, kind)).splitlines()
        assert max(map(len, lines)) <= 100
        assert sum(line.startswith("--") for line in lines) == 1


def test_table_while_running_has_the_last_rows_only(record):
    shown = table(record, TRANSPOSED, last=2)
    assert [row[0].text.strip() for row in shown.rows] == ["fsdp1_layers", "torchao_int8wo"]
    assert shown.notes == ()


def test_sentences(record, golden):
    golden("matrix-sentences.txt", "\n".join(sentences(record)) + "\n")


def test_nothing_to_say_where_all_is_as_expected(record, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.13.1")
    record.expectation = Expectation("2.13.0", {})
    record.add(Outcome("transposed", "load_assign", "tied.nn", "ok"))
    assert sentences(record) == ["Every cell is as expected from torch 2.13.0."]


def test_cells_of_tied_that_are_wrong_are_found(record):
    assert [(one.row, one.recipe) for one in record.wrong_of_ours()] == [("load_assign", "tied.nn")]


def test_json_is_complete(record):
    known = json.loads(json.dumps(record.to_json()))
    assert len(known["cells"]) == 8 * 7 - 1
    assert known["cells"][0] == {
        "kind": "transposed",
        "row": "adam5",
        "recipe": "Parameter",
        "state": "wrong",
        "reason": "training: differs by 0.3 <here>",
        "details": [],
        "seconds": 0.5,
    }
    assert known["expectation"]["is_of_this_torch"] is False
    assert {(d["row"], d["recipe"], d["expected"], d["got"]) for d in known["expectation"]["differences"]} == {
        ("load_assign", "twice", "wrong", "ok"),
        ("load_assign", "tied.nn", "ok", "wrong"),
    }
    tied = next(recipe for recipe in known["recipes"] if recipe["key"] == "tied")
    assert tied["counts"] == {"ok": 5, "same": 0, "wrong": 0, "error": 1, "does not apply": 0, "not run": 1}
    assert [row["name"] for row in known["rows"]] == [row.name for row in record.rows]


class Page(HTMLParser):
    """Collects text, and everything that would be loaded from elsewhere."""

    def __init__(self):
        super().__init__()
        self.text, self.loaded = "", []

    def handle_starttag(self, tag, attrs):
        self.loaded += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.text += data


def test_page_is_self_contained(record):
    record.interrupted = True
    read = Page()
    read.feed(report(record))
    assert read.loaded == []
    assert "@import" not in read.text
    for words in ("Interrupted", "adam5 / hook, transposed: wrong", "differs by 0.3 <here>", "expected wrong, got ok"):
        assert words in read.text


def test_explanation(record, golden):
    outcome = Outcome(
        "transposed", "load_assign", "twice", "wrong", "training: it differs",
        ("arrived: it does", "NOT training: after 3 steps of AdamW, the model differs by 0.3 (equal: at most 1e-09)"),
        0.0123,
    )  # fmt: skip
    record.add(outcome)
    golden("matrix-explanation.txt", explanation(record, outcome) + "\n")


def test_explanation_of_a_refusal_says_why_it_is_right(record):
    outcome = Outcome("transposed", "ckpt_disagree", "tied", "refused", "", ("ConflictError: they differ",))
    lines = explanation(record, outcome).splitlines()
    assert lines[0] == "ckpt_disagree / tied, transposed tie: refused"
    assert lines[2:4] == ["  one weight cannot have both values:", "  ConflictError: they differ"]
    assert any("tied.tie" in line or "tie(model" in line for line in lines)


@pytest.mark.parametrize("kind", [TRANSPOSED, IDENTITY], ids=lambda kind: kind.name)
def test_the_guide_has_the_counts_of_the_expectation(kind):
    """The counts of `docs/guide/matrix.md` are those of the committed expectation for torch 2.13."""
    [known] = [each for each in known_results.known() if each.torch.startswith("2.13.")]
    record = Record(ROWS, known)
    for row, states in known.cells[kind.name].items():
        for recipe, state in states.items():
            record.add(Outcome(kind.name, row, recipe, state))
    header, _, *lines = to_text(replace(table(record, kind), notes=())).splitlines()
    counts = "\n".join([header, *lines[lines.index("counts:") + 1 :]])
    assert counts in (ROOT / "docs" / "guide" / "matrix.md").read_text(encoding="utf-8")


# -- the README -----------------------------------------------------------------------------------------

MARK = "<!-- matrix: written by tests/study/matrix/test_report.py -->\n"
MATRIX = re.compile(f"(?<={MARK}).*?(?=<!-- end of matrix -->)", re.S)


def as_expected(known: Expectation) -> Record:
    """The outcomes that `tied matrix` had on a known torch."""
    made = Record(ROWS, known)
    for kind, rows in known.cells.items():
        for row, states in rows.items():
            for recipe, state in states.items():
                made.add(Outcome(kind, row, recipe, state))
    return made


def summary(known: Expectation) -> str:
    """The counts of each recipe, as a table of Markdown."""
    outcomes, kind = as_expected(known), TRANSPOSED
    words = {"right": ("ok", "refused"), "wrong, silently": ("wrong", "same"), "an error": ("error",)}
    lines = ["| decoder = encoderᵀ by | " + " | ".join(words) + " |", "|---|" + "---:|" * len(words)]
    for column in kind.columns:
        counts = [str(outcomes.count(kind.name, column.key, states)) for states in words.values()]
        lines.append(f"| {column.name} | " + " | ".join(counts) + " |")
    return "\n".join(lines) + "\n"


def test_the_table_of_the_readme(request):
    page = ROOT / "README.md"
    text, made = page.read_text(encoding="utf-8"), summary(known_results.known()[-2])
    if request.config.getoption("--update-golden"):
        page.write_text(MATRIX.sub(made, text), encoding="utf-8", newline="\n")
    else:
        assert MATRIX.search(text)[0] == made
