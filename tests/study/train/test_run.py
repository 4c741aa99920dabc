"""Training, checkpoints and resuming, in this process.

The oracle of a step is plain torch written by hand; that of a broken run is the same run, unbroken.
"""

import csv
import json
import math
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import tied
from tied.study.progress import Progress
from tied.study.train import (
    AutoencoderPlan,
    DataError,
    DivergedError,
    FolderError,
    LanguagePlan,
    PlanError,
    Samples,
    compare,
    train,
)
from tied.study.train.autoencoder import AutoencoderTask
from tied.study.train.checkpoint import checkpoints
from tied.study.train.interrupt import Stop
from tied.study.train.job import Job
from tied.study.train.loop import Training
from tied.study.train.processes import Processes
from tied.study.train.run import Run, events
from tied.study.train.task import draw, generator

SAMPLES = Samples.of(np.random.default_rng(0).random((50, 4, 4)), np.arange(50) % 3)
PLAN = AutoencoderPlan(sizes=(6, 3), denoise=0.2, epochs=6, batch_size=16, lr=0.01)
TEXT = "the cat sat on the mat and the dog sat too.\n" * 60


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def figures(run: Run) -> list[tuple[float, float]]:
    return [(epoch.training, epoch.held_out) for epoch in run.epochs]


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def same(first: Run, second: Run) -> bool:
    pairs = zip(weights(first.model), weights(second.model), strict=True)
    return figures(first) == figures(second) and all(torch.equal(*pair) for pair in pairs)


def stopped_after(job: Job, steps: int, data=SAMPLES) -> str:
    """Do a job and raise Ctrl-C behind that many steps; returns what was said."""
    original = Training._step

    def step(self, *arguments):
        nonlocal steps
        steps -= 1
        if not steps:
            signal.raise_signal(signal.SIGINT)
        return original(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "_step", step)
        with pytest.raises(KeyboardInterrupt) as caught:
            list(events(job, Processes(), data))
    return str(caught.value)


# A step


def test_steps_by_hand():
    """Two epochs of AdamW with clipping, written out; order and noise from the stated seeds."""
    task = AutoencoderTask(PLAN, SAMPLES)
    with torch.random.fork_rng():
        torch.manual_seed(draw("start", 0))
        oracle = task.model()
    optimizer = torch.optim.AdamW(oracle.parameters(), lr=0.01, weight_decay=1e-4)
    step, means = 0, []
    for epoch in range(2):
        order = torch.randperm(40, generator=generator("order", 0, epoch))
        losses = []
        for batch in (task.training[part] for part in (order[:16], order[16:32], order[32:])):
            kept = torch.rand(batch.shape, generator=generator("noise", 0, step)) >= 0.2
            each = (oracle(batch * kept) - batch).square().mean((1, 2, 3))
            optimizer.zero_grad()
            each.mean().backward()
            nn.utils.clip_grad_norm_(oracle.parameters(), 1.0)
            optimizer.step()
            losses += each.tolist()
            step += 1
        means.append(sum(losses) / 40)
    run = train(AutoencoderPlan(**vars(PLAN) | {"epochs": 2}), data=SAMPLES)
    assert [epoch.training for epoch in run.epochs] == pytest.approx(means, rel=1e-6)
    for mine, theirs in zip(weights(run.model), weights(oracle), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-7, rtol=1e-6)
    kept = torch.rand(task.held_out.shape, generator=generator("noise", 0, "held out")) >= 0.2
    with torch.no_grad():
        error = float((oracle(task.held_out * kept) - task.held_out).square().mean())
    assert run.held_out == pytest.approx(error, rel=1e-6)
    assert [epoch.step for epoch in run.epochs] == [3, 6]


def test_training_learns_and_stays_tied():
    run = train(PLAN, data=SAMPLES)
    assert run.held_out < run.epochs[0].held_out
    assert torch.equal(run.model.body.decoder[-1].weight, run.model.body.encoder[0].weight.T)
    assert not run.model.training
    assert run.parameters == sum(parameter.numel() for parameter in run.model.parameters())


def test_training_leaves_the_random_numbers_and_signals_alone():
    state, handlers = torch.random.get_rng_state(), [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    train(PLAN, data=SAMPLES)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_run_is_the_same_again_and_another_with_another_seed():
    first, again = train(PLAN, data=SAMPLES), train(PLAN, data=SAMPLES)
    assert same(first, again)
    assert figures(first) != figures(train(AutoencoderPlan(**vars(PLAN) | {"seed": 1}), data=SAMPLES))


def test_a_loss_that_is_no_number_is_an_error():
    with pytest.raises(DivergedError) as caught:
        train(AutoencoderPlan(**vars(PLAN) | {"lr": 1e30}), data=SAMPLES, out="out")
    assert str(caught.value) == (
        "The loss is no number any more.\n"
        "  found:    not-a-number in epoch 1, at a learning rate of 1e+30\n"
        "  expected: a finite loss\n"
        "  fix:      --lr 1e+29\n"
        "The last checkpoint is as it was."
    )


# Stopping and going on


@pytest.mark.parametrize("steps", [1, 3, 7, 17])
@pytest.mark.parametrize(
    "plan",
    [
        PLAN,
        AutoencoderPlan(**vars(PLAN) | {"patience": 2, "lr": 0.3}),
        AutoencoderPlan(sizes=(3, 2), conv=True, loops=2, epochs=6, batch_size=16),
    ],
    ids=["dense", "patience", "conv"],
)
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(plan, steps):
    unbroken = train(plan, data=SAMPLES)
    steps = min(steps, unbroken.epochs[-1].step)
    said = stopped_after(Job(plan, out=Path("out")), steps)
    assert said == f"tied-seed-0, step {steps}"
    assert [path.name for path in checkpoints(Path("out/tied-seed-0"))] == [f"checkpoint-{steps:08}"]
    assert same(train(plan, data=SAMPLES, out="out", resume=True), unbroken)


@pytest.mark.parametrize("network", ["lstm", "transformer"])
def test_a_stopped_language_model_goes_on_dropout_included(network):
    Path("text.txt").write_text(TEXT)
    plan = LanguagePlan(data="text.txt", network=network, width=8, context=8, epochs=3, batch_size=8)
    unbroken = train(plan)
    stopped_after(Job(plan, out=Path("out")), unbroken.epochs[0].step + 2, data=None)
    assert same(train(plan, out="out", resume=True), unbroken)


def test_a_run_stopped_twice_and_a_comparison_go_on():
    whole = compare(PLAN, seeds=2, data=SAMPLES)
    job = Job(PLAN, compare=True, seeds=2, out=Path("out"))
    assert stopped_after(job, 20) == "untied-seed-0, step 2"
    resumed = Job(PLAN, compare=True, seeds=2, out=Path("out"), resume=True)
    assert stopped_after(resumed, 30) == "tied-seed-1, step 14"
    again = compare(PLAN, seeds=2, data=SAMPLES, out="out", resume=True)
    assert [run.plan.name for run in again] == ["tied-seed-0", "untied-seed-0", "tied-seed-1", "untied-seed-1"]
    assert all(same(*pair) for pair in zip(whole, again, strict=True))


def test_a_finished_run_goes_on_for_more_epochs_and_is_read_for_no_more():
    longer = AutoencoderPlan(**vars(PLAN) | {"epochs": 9})
    first = train(PLAN, data=SAMPLES, out="out")
    assert same(train(PLAN, data=SAMPLES, out="out", resume=True), first)
    assert same(train(longer, data=SAMPLES, out="out", resume=True), train(longer, data=SAMPLES))


def test_patience_stops_early_and_keeps_the_best():
    plan = AutoencoderPlan(**vars(PLAN) | {"patience": 2, "lr": 0.3, "epochs": 40})
    run = train(plan, data=SAMPLES)
    best = min(epoch.held_out for epoch in run.epochs)
    assert run.held_out == best
    assert len(run.epochs) == run.result.number + 2 < 40
    unhurried = train(AutoencoderPlan(**vars(plan) | {"patience": 0, "epochs": run.result.number}), data=SAMPLES)
    assert all(torch.equal(*pair) for pair in zip(weights(run.model), weights(unhurried.model), strict=True))


def test_a_killed_checkpoint_leaves_the_one_before(monkeypatch):
    """A process that dies while it writes: the half-written folder is not taken for a checkpoint."""
    stopped_after(Job(PLAN, out=Path("out")), 5)
    folder = Path("out/tied-seed-0")
    shutil.copytree(checkpoints(folder)[0], folder / ".new-abc")
    (folder / ".new-abc" / "training.pt").unlink()
    assert same(train(PLAN, data=SAMPLES, out="out", resume=True), train(PLAN, data=SAMPLES))


def test_a_broken_checkpoint_is_named():
    stopped_after(Job(PLAN, out=Path("out")), 5)
    (file,) = Path("out").rglob("training.pt")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match=r"out/tied-seed-0/checkpoint-00000005/training.pt cannot be read"):
        train(PLAN, data=SAMPLES, out="out", resume=True)


def test_a_second_ctrl_c_is_heard_at_once_and_a_polite_kill_is_a_wish():
    with Stop() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.wished
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


# The folder


def test_a_folder_that_holds_a_run_is_not_used_for_another():
    train(PLAN, data=SAMPLES, out="out")
    before = {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
    with pytest.raises(FolderError) as caught:
        train(PLAN, data=SAMPLES, out="out")
    assert str(caught.value) == (
        "out holds a training already.\n"
        "  found:    plan.json in out\n"
        "  expected: another folder, or --resume\n"
        "  fix:      tied train autoencoder --epochs 6 --batch-size 16 --lr 0.01 --sizes 6,3 --denoise 0.2 --out out "
        "--resume\n"
        "Nothing was trained or written."
    )
    for job, words in {
        Job(AutoencoderPlan(**vars(PLAN) | {"lr": 0.02}), out=Path("out"), resume=True): "lr: 0.01, now 0.02",
        Job(PLAN, seeds=2, out=Path("out"), resume=True): "seeds: 1, now 2",
        Job(PLAN, compare=True, out=Path("out"), resume=True): "compare: False, now True",
    }.items():
        with pytest.raises(FolderError, match=words):
            list(events(job, Processes(), SAMPLES))
    with pytest.raises(FolderError, match="the values of the data"):
        train(PLAN, data=Samples.of(SAMPLES.values[:, 0].numpy() * 2, np.arange(50) % 3), out="out", resume=True)
    assert {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()} == before


def test_nothing_to_resume():
    with pytest.raises(FolderError, match=r"There is nothing to resume.\n  found:    no plan.json in out"):
        train(PLAN, data=SAMPLES, out="out", resume=True)
    assert not Path("out").exists()
    Path("out").mkdir()
    Path("out/plan.json").write_text("{")
    with pytest.raises(DataError, match=r"out/plan.json cannot be read"):
        train(PLAN, data=SAMPLES, out="out", resume=True)


def test_the_folder_of_a_comparison():
    runs = compare(PLAN, seeds=2, data=SAMPLES, out="out")
    assert {path.name for path in Path("out").iterdir()} == {
        *("plan.json", "history.csv", "results.json", "report.html"),
        *(run.plan.name for run in runs),
    }
    rows = list(csv.DictReader(Path("out/history.csv").read_text().splitlines()))
    assert len(rows) == 4 * 6
    assert [float(row["held_out"]) for row in rows[:6]] == [epoch.held_out for epoch in runs[0].epochs]
    known = json.loads(Path("out/results.json").read_text())
    assert [run["held_out"] for run in known["runs"]] == [run.held_out for run in runs]
    assert known["baselines"]["the mean sample"] == runs[0].task.baselines["the mean sample"]
    for run in runs:
        fresh = run.task.model()
        tied.load(fresh, f"out/{run.plan.name}/model.safetensors")
        assert all(torch.equal(*pair) for pair in zip(weights(fresh), weights(run.model), strict=True))


def test_without_a_folder_nothing_is_written():
    train(PLAN, data=SAMPLES)
    assert list(Path().iterdir()) == []


def test_a_comparison_with_patience_would_not_be_at_equal_steps():
    with pytest.raises(PlanError, match="--patience must be 0 with --compare, which is at equal steps, not 3"):
        compare(AutoencoderPlan(patience=3), data=SAMPLES)
    with pytest.raises(PlanError, match="--seeds must be 1 or more, not 0"):
        compare(PLAN, seeds=0, data=SAMPLES)


# Progress


def test_progress_tells_figure_speed_and_time_left(monkeypatch):
    monkeypatch.setattr("tied.study.train.run.SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setattr("tied.study.train.run.SECONDS_BETWEEN_SIGNS", 0.0)
    told = [event for event in events(Job(PLAN, compare=True), Processes(), SAMPLES) if isinstance(event, Progress)]
    lines = [one for one in told if one.milestone]
    assert [one.done for one in lines] == list(range(1, 13))
    assert all(one.total == 12 for one in told)
    assert len(told) > len(lines)
    pattern = r"untied-seed-0, epoch 6: held-out error 0\.\d+; [\d,]+ images/s, 0:00 left"
    assert re.fullmatch(pattern, lines[-1].detail), lines[-1].detail


def test_clock():
    from tied.study.train.run import _clock

    assert [_clock(s) for s in (0.4, 59.6, 61, 3661)] == ["0:00", "1:00", "1:01", "1:01:01"]


# Several processes: the arithmetic of sharing, with a stand-in for the others


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [1, 2, 7, 12])
def test_shares_add_up_to_the_mean_over_the_batch(count, size):
    batch = torch.rand(size, 3, dtype=torch.float64)
    parts = []
    for number in range(count):
        one = Processes()
        one.count, one.number = count, number
        mine, factor = one.share(batch)
        assert len(mine)
        parts.append(mine.square().sum(1).sum() * factor)
    assert math.isclose(sum(parts) / count, batch.square().sum(1).mean(), rel_tol=1e-12)
