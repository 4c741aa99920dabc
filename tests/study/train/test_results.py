"""What is made of runs: words and pictures, from made-up figures and from small trainings."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tied.reporting.table import to_text
from tied.study.train import AutoencoderPlan, LanguagePlan, Samples, compare, train
from tied.study.train.job import Job
from tied.study.train.pictures import gallery, principal_plane
from tied.study.train.results import report, sentences, spread, table, write_pictures, write_results, writing

PNG = b"\x89PNG"


def samples(*shape: int, labels=()) -> Samples:
    return Samples.of(np.random.default_rng(0).random((30, *shape)), labels, source="noise")


@pytest.fixture(scope="module")
def runs():
    """A comparison over two seeds, with made-up figures."""
    found = compare(AutoencoderPlan(sizes=(4, 2), epochs=2), seeds=2, data=samples(5, 5, labels=np.arange(30) % 3))
    made = []
    for run, held_out in zip(found, [0.0123, 0.01, 0.0131, 0.014], strict=True):
        epochs = tuple(replace(epoch, training=0.02, held_out=held_out, seconds=1.5) for epoch in run.epochs)
        run.task.baselines = {"the mean sample": 0.08}
        made.append(replace(run, epochs=epochs, result=epochs[-1]))
    return made


def test_table_and_sentences(runs, golden):
    golden("train/results.txt", "\n".join([to_text(table(runs)), "", *sentences(runs)]) + "\n")


def test_a_gain_and_a_loss_are_told_alike(runs):
    for run in runs:
        assert run.plan.tie == (run.plan.name.startswith("tied"))
    worse = sentences([runs[0], runs[1]])[0]
    better = sentences([runs[2], runs[3]])[0]
    assert "23.0% higher than untied" in worse
    assert "it is higher in 1 of 1 seed." in worse
    assert "6.4% lower than untied" in better
    assert "it is higher in 0 of 1 seed." in better


def test_a_single_run_is_compared_with_simple_rules_only(runs):
    assert sentences(runs[:1]) == ["For comparison, the held-out error of the mean sample 0.08."]
    assert table([]).rows == ()
    assert sentences([]) == []


@pytest.mark.parametrize(
    ("figures", "text"),
    [
        ([0.01234567], "0.01235"),
        ([20.0, 22.0], "21.00 ±1.41"),
        ([0.01, 0.012], "0.01100 ±0.00141"),
        ([1e-7], "1.000e-07"),
    ],
)
def test_spread(figures, text):
    assert spread(figures) == text


@pytest.mark.parametrize(
    ("shape", "options", "names"),
    [
        ((5, 5), {}, {"filters.png", "reconstructions.png", "codes.png", "loss.png"}),
        ((5, 4, 3), {"denoise": 0.2}, {"filters.png", "reconstructions.png", "codes.png", "loss.png"}),
        ((6, 7), {"conv": True}, {"filters.png", "reconstructions.png", "codes.png", "loss.png"}),
        ((5,), {"sizes": (1,)}, {"filters.png", "reconstructions.png", "codes.png", "loss.png"}),
        ((5, 5), {"epochs": 1}, {"filters.png", "reconstructions.png", "codes.png"}),
    ],
    ids=["gray", "colors", "convolutions", "rows", "one epoch"],
)
def test_pictures(shape, options, names):
    found = compare(AutoencoderPlan(**{"sizes": (4, 2), "epochs": 2} | options), seeds=1, data=samples(*shape))
    drawn = gallery(found)
    assert set(drawn) == names
    assert all(picture.startswith(PNG) for picture in drawn.values())


def test_a_language_model_has_curves_and_writes(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat and the dog sat too.\n" * 60)
    run = train(LanguagePlan(data=str(text), width=8, context=8, epochs=2))
    assert set(gallery([run])) == {"loss.png"}
    prompt, written = writing(run).split(" | ")
    assert run.task.corpus.text(run.task.corpus.held_out[:16].tolist()) == prompt
    assert len(written) > 20
    assert "What the tied model writes" in report(Job(run.plan), [run], {})
    assert writing(replace(run, task=compare_task())) == ""


def compare_task():
    return train(AutoencoderPlan(sizes=(2,), epochs=1), data=samples(5)).task


def test_the_folder_loses_pictures_that_show_something_else(runs, tmp_path):
    job = Job(runs[0].plan, compare=True, seeds=2, out=tmp_path)
    (tmp_path / "codes.png").write_bytes(b"old")
    assert [path.name for path in write_results(job, runs)] == ["results.json", "report.html"]
    assert not (tmp_path / "codes.png").exists()
    drawn = write_pictures(job, runs)
    assert (tmp_path / "report.html").read_text().count("data:image/png;base64,") == len(drawn) == 4


def test_names_from_files_are_escaped(runs):
    wild = Samples.of(np.random.default_rng(0).random((30, 5)), source="<script>.npy")
    run = train(AutoencoderPlan(sizes=(2,), epochs=1), data=wild)
    assert "<script>" not in report(Job(run.plan, out=Path("<b>")), [run], {})


def test_principal_plane():
    codes = np.random.default_rng(0).normal(size=(50, 5)) * [1, 9, 1, 5, 1]
    plane = principal_plane(codes)
    assert plane.shape == (50, 2)
    assert np.corrcoef(plane[:, 0], codes[:, 1])[0, 1] ** 2 > 0.9
    assert plane.var(axis=0)[0] > plane.var(axis=0)[1]
    assert principal_plane(codes[:, :1]).shape == (50, 2)
