"""The run as a whole: its order, its findings, and what is made of them."""

import itertools
import json
from pathlib import Path

import pytest
import torch

from tied.reporting.table import to_text
from tied.show.pictures import MissingPackageError
from tied.study.demo.pictures import gallery
from tied.study.demo.properties import Properties
from tied.study.demo.record import DRIFTED, Plan, Record, Run, StepTimes
from tied.study.demo.report import results, sentences, write_data, write_pictures
from tied.study.demo.run import demo, jobs, one_of_each
from tied.study.digits import load
from tied.study.output_folder import prepare
from tied.study.progress import Progress
from tied.study.recipes import ALL, TIED, UNTIED

PICTURES = ["filters.png", "reconstructions.png", "loss.png"]


def test_findings_come_breadth_first(events):
    kinds = [type(event) for event in events if not isinstance(event, Progress)]
    assert [kind for kind, _ in itertools.groupby(kinds)] == [Properties, StepTimes, Run]
    assert kinds.count(Properties) == 10
    assert kinds.count(Run) == 2 * 9 + 1


def test_progress_counts_up_to_its_total(events):
    for stage in ("checking", "timing", "training"):
        steps = [event for event in events if isinstance(event, Progress) and event.stage == stage]
        assert steps[-1].done == steps[-1].total
        assert [step.done for step in steps] == sorted(step.done for step in steps)
        assert steps[-1].milestone


def test_seeds_follow_the_first(record):
    assert [run.seed for run in record.runs["tied"]] == [0, 1]
    assert [run.seed for run in record.runs[DRIFTED]] == [0]
    assert [job.seed for job in jobs(Plan(seed=7, seeds=2))] == [7] * 10 + [8] * 9


def test_threads_are_put_back():
    torch.set_num_threads(2)
    try:
        next(run := demo(Plan(seeds=1, epochs=1, rounds=1)))
        assert torch.get_num_threads() == 1
        run.close()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_tied_stays_tied_and_the_copy_drifts(record):
    assert record.first_run("tied").parts.spread() == 0
    assert record.first_run(DRIFTED).parts.spread() > 1e-3
    assert [epoch.number for epoch in record.first_run(DRIFTED).epochs] == [1, 2, 3, 4]


def test_one_of_each():
    assert one_of_each(load()).labels.tolist() == list(range(10))


def test_json_is_complete(record):
    known = json.loads(json.dumps(record.to_json()))
    assert known["plan"] == {"seed": 0, "seeds": 2, "epochs": 4, "rounds": 2}
    assert [recipe["name"] for recipe in known["recipes"]] == [recipe.name for recipe in ALL]
    tied = next(recipe for recipe in known["recipes"] if recipe["name"] == "tied")
    assert tied["parameters"] == 1104
    assert tied["survival"] == {"deepcopy": "yes", "double": "yes", "save_load": "yes"}
    assert tied["held_out_error_mean"] == pytest.approx(sum(tied["held_out_errors"]) / 2)
    assert tied["milliseconds_per_step"] > 0


def test_table_fits_its_widths_and_says_what_was_measured(record):
    table = results(record)
    for width in (100, 80):
        assert max(len(line) for line in to_text(table, width).splitlines()) <= width
    tied = next(row for row in table.rows if row[0].text == "tied")
    assert [cell.text for cell in tied[1:3]] == ["1,104", "both"]
    assert [cell.tone for cell in tied[2:7]] == ["good"] * 5
    assert [cell.tone for cell in table.rows[1][2:7]] == ["bad"] * 5
    assert {cell.tone for cell in table.rows[-1]} == {"plain"}


def test_sentences_carry_the_figures_of_the_run(record):
    text = "\n".join(sentences(record))
    assert "TypeError: cannot assign" in text
    assert "Wrong without any error message: nn.Parameter(w.t()), .data alias, hook that copies." in text
    assert f"a held-out error {record.price()} than untied, with 1,104 parameters instead of 2,128" in text
    assert "0 for tied" in text


@pytest.mark.parametrize(("tied", "expected"), [(3.0, "50.0% higher"), (1.0, "50.0% lower")])
def test_price_is_told_whichever_way_it_comes_out(record, monkeypatch, tied, expected):
    monkeypatch.setattr(Record, "errors", lambda self, name: [tied if name == TIED.name else 2.0])
    assert record.price() == expected


def test_nothing_known_nothing_said():
    empty = Record(Plan())
    assert sentences(empty) == []
    assert results(empty).rows == ()
    assert gallery(empty) == {}
    assert empty.to_json()["recipes"] == []


def test_half_known_is_half_shown(record):
    """What Ctrl-C leaves: properties of two recipes and one trained model."""
    partial = Record(Plan())
    for name in (TIED.name, UNTIED.name):
        partial.add(record.properties[name])
    partial.add(record.first_run(TIED.name))
    partial.interrupted = True
    rows = {row[0].text: [cell.text for cell in row] for row in results(partial).rows}
    assert rows["tied"][-1] == rows["untied baseline"][-2] == "-"
    assert partial.price() == ""
    assert set(gallery(partial)) == set(PICTURES)
    assert partial.to_json()["interrupted"] is True


def test_folder_holds_a_whole_report(record, tmp_path):
    folder = tmp_path / "new" / "out"
    prepare(folder)
    assert [path.name for path in write_data(record, folder)] == ["results.json", "report.html"]
    before = (folder / "report.html").read_text()
    assert "<img" not in before
    assert [path.name for path in write_pictures(record, folder)] == PICTURES
    page = (folder / "report.html").read_text()
    assert page.count('src="data:image/png;base64,') == 3
    assert "http" not in page.replace("https://doi", "")
    assert sorted(path.name for path in folder.iterdir()) == sorted([*PICTURES, "results.json", "report.html"])


def test_pictures_of_an_earlier_run_do_not_stay(record, tmp_path):
    for name in [*PICTURES, "mine.png"]:
        (tmp_path / name).write_text("earlier")
    write_data(record, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "report.html", "mine.png"}


def test_interrupted_write_leaves_the_old_file(record, tmp_path, monkeypatch):
    write_data(record, tmp_path)
    before = (tmp_path / "results.json").read_text()

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_data(Record(Plan()), tmp_path)
    assert (tmp_path / "results.json").read_text() == before
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "report.html"}


def test_without_matplotlib_one_line_says_what_to_install(record, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(MissingPackageError) as caught:
        write_pictures(record, tmp_path)
    assert str(caught.value) == "Pictures need matplotlib: pip install 'tied[pictures]'"
    assert not list(tmp_path.iterdir())


def test_out_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="File exists"):
        prepare(tmp_path / "file")
    with pytest.raises(OSError, match="Not a directory"):
        prepare(tmp_path / "file" / "below")
