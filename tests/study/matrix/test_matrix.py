"""The matrix: the law can see each fault, cells have their known states, and a crash ends one cell only."""

import copy
import inspect
import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rows_for_tests import ROWS as MISBEHAVING
from torch import nn

from tied.errors import AddressError
from tied.study.matrix import known_results
from tied.study.matrix.kinds import IDENTITY, KINDS, TRANSPOSED, Kind
from tied.study.matrix.known_results import Expectation
from tied.study.matrix.law import Oracle, batch, failed, law
from tied.study.matrix.row import STATES, Elsewhere, Outcome, Row, first_line, judge, worded
from tied.study.matrix.rows import ROWS
from tied.study.matrix.run import Plan, keys_of, named_row, run
from tied.study.matrix.subject import Subject
from tied.study.progress import Progress

BY_NAME = {row.name: row for row in ROWS}
PROCESSES = Path("/proc")
RECIPES = ["Parameter", "data", "hook", "functional", "holds", "twice", "tied", "tied.nn"]


def subject(recipe: str, kind: Kind = TRANSPOSED) -> Subject:
    return Subject.fresh(kind, kind.column(recipe))


def lost(of: Subject) -> list[str]:
    return [check.name for check in failed(law(of))]


# -- the law -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("recipe", ["functional", "holds", "twice", "tied"])
def test_the_law_holds_for_one_parameter(kind, recipe):
    assert lost(subject(recipe, kind)) == []


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("recipe", ["Parameter", "data", "hook"])
def test_the_law_sees_what_is_half_tied(kind, recipe):
    assert lost(subject(recipe, kind)) == ["counted", "gradient", "training"]


def test_the_law_sees_each_fault():
    cut = subject("functional")
    cut = cut.then(copy.deepcopy(cut.model))
    cut.model.decode = cut.another().model.decode
    assert lost(cut)[:2] == ["value", "follows"]
    spare = subject("functional")
    spare.model.spare = nn.Parameter(torch.zeros(1))
    assert lost(spare) == ["counted"]
    bent = subject("functional")
    bent.model.encoder.weight.register_hook(lambda gradient: 2 * gradient)
    assert lost(bent) == ["gradient", "training"]
    gone = subject("functional")
    gone.model.encoder.register_parameter("weight", None)
    assert [str(check) for check in law(gone)] == [
        "counted: 'encoder.weight' is not among the model's parameters any more"
    ]


def test_the_law_sees_an_undefined_number():
    broken = subject("functional")
    shouted = broken.called_as(lambda inputs: broken.model(inputs) * torch.tensor(float("nan")))
    assert "value" in lost(shouted)


def test_clipping_acts_in_the_compared_steps():
    from tied.study.reference import CLIP_NORM, clipped_step, optimizer_for

    for kind in KINDS.values():
        one = subject("functional", kind)
        oracle = Oracle(one)
        optimizer = optimizer_for(oracle.parameters())
        for number in range(10, 13):
            inputs, goals = batch(one, number)
            norm = clipped_step(optimizer, lambda x=inputs, y=goals, o=oracle: (o(x) - y).square().mean())
            assert norm > CLIP_NORM


def test_subjects_of_one_seed_are_alike_and_of_another_are_not():
    one, two, other = subject("tied"), subject("tied"), subject("tied").another()
    inputs, _ = batch(one, 1)
    assert torch.equal(one(inputs), two(inputs))
    assert not torch.equal(one(inputs), other(inputs))


# -- known states --------------------------------------------------------------------------------------

KNOWN = {
    # row: state by recipe, in the order of RECIPES
    "sgd5": "ok ok wrong ok ok ok ok ok",
    "adam5": "wrong wrong wrong ok ok ok ok ok",
    "double": "wrong wrong same ok ok ok ok ok",
    "to_empty_reset": "wrong wrong same ok ok wrong ok ok",
    "load_state_dict": "same same same ok ok ok ok ok",
    "load_assign": "same same same ok ok wrong ok ok",
    "ckpt_source_key": "error error error ok error error ok ok",
    "ckpt_disagree": "wrong wrong wrong refused refused refused refused refused",
    "deepcopy": "wrong wrong wrong ok ok ok ok ok",
    "deepcopy_dec": "ok ok wrong - ok ok ok ok",
    "pickle": "wrong wrong error ok ok ok ok ok",
    "ema": "ok ok wrong ok ok ok ok ok",
    "functional_call_grad": "wrong wrong wrong ok ok ok ok ok",
    "prune_source": "wrong wrong same ok ok wrong ok ok",
    "prune_decode_only": "wrong wrong wrong wrong wrong wrong ok ok",
    "replace_source_module": "wrong wrong same ok wrong wrong ok ok",
    "freeze_dec_module": "wrong wrong wrong - ok ok ok ok",
    "write_dec_weight": "wrong wrong wrong - wrong wrong refused refused",
}
KNOWN_IDENTITY = {
    "deepcopy": "wrong wrong wrong ok ok ok ok",
    "load_assign": "same same same ok ok wrong ok",
    "ckpt_disagree": "wrong wrong wrong refused refused wrong refused",
    "weight_norm_source": "wrong wrong same ok ok wrong ok",
    "freeze_dec_param": "wrong wrong wrong error error ok ok",
}


@pytest.mark.parametrize("row", KNOWN)
def test_known_states(row):
    states = [judge(BY_NAME[row], subject(recipe)).state for recipe in RECIPES]
    assert " ".join(states) == KNOWN[row]


@pytest.mark.parametrize("row", KNOWN_IDENTITY)
def test_known_states_of_the_identity_tie(row):
    states = [judge(BY_NAME[row], subject(recipe, IDENTITY)).state for recipe in RECIPES[:-1]]
    assert " ".join(states) == KNOWN_IDENTITY[row]


def test_columns_are_those_of_the_demo():
    assert [column.key for column in TRANSPOSED.columns] == RECIPES
    assert [column.key for column in IDENTITY.columns] == RECIPES[:-1]
    assert [column.key for column in TRANSPOSED.columns if column.ours] == ["tied", "tied.nn"]


def test_there_are_61_rows_that_say_what_they_do():
    assert len(BY_NAME) == len(ROWS) == 61
    assert all(row.what for row in ROWS)
    assert all(len(inspect.cleandoc(row.what).splitlines()[0]) <= 120 for row in ROWS)


def test_a_reason_says_what_differs():
    wrong = judge(BY_NAME["load_assign"], subject("twice"))
    assert wrong.reason.startswith("counted: 2,128 numbers in parameters(), 1,104 in the formula; gradient: ")
    assert any(line.startswith("NOT training: after 3 steps of AdamW, the model differs by") for line in wrong.details)
    assert any(line.startswith("arrived: the loaded model's output differs by 0 ") for line in wrong.details)


def test_a_refusal_and_an_error_keep_the_message():
    refused = judge(BY_NAME["write_dec_weight"], subject("tied"))
    assert refused.reason.startswith("a tied weight is set at its source: WriteError: 'decoder.weight' is tied")
    assert any("fix:" in line for line in refused.details)
    error = judge(BY_NAME["ckpt_source_key"], subject("twice"))
    assert error.reason == (
        'RuntimeError: Error(s) in loading state_dict for Autoencoder: Missing key(s) in state_dict: "decoder.weight".'
    )


def test_errors_are_worded():
    assert worded(ValueError("a\n\n  b")) == ["ValueError: a", "  b"]
    assert worded(ValueError()) == ["ValueError"]
    assert first_line(ValueError("a:\n  b\nc")) == "ValueError: a: b"
    assert worded(Elsewhere(["TypeError: x", "y"])) == ["TypeError: x", "y"]


def test_what_was_wrong_before_is_not_blamed_on_the_operation():
    nothing = Row("nothing", "test", lambda subject: subject)
    assert judge(nothing, subject("hook")).state == "same"
    assert judge(replace(nothing, absolute=True), subject("hook")).state == "wrong"
    assert judge(nothing, subject("tied")).state == "ok"


def test_outcomes_survive_json():
    outcome = judge(BY_NAME["load_assign"], subject("twice"))
    assert Outcome.from_json(json.loads(json.dumps(outcome.to_json()))) == outcome


# -- the run -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def events() -> list:
    """One run of the rows for tests, among them some that misbehave."""
    return list(run(Plan(registry="rows_for_tests", limit_seconds=4)))


@pytest.fixture(scope="module")
def cells(events) -> dict[tuple[str, str], Outcome]:
    return {(event.row, event.recipe): event for event in events if isinstance(event, Outcome)}


def test_every_cell_has_an_outcome(cells):
    assert set(cells) == {(row.name, recipe) for row in MISBEHAVING for recipe in RECIPES}


def test_a_crash_ends_one_cell(cells):
    crashed = cells["aborts", "tied"]
    assert (crashed.state, crashed.reason) == ("error", "its process ended without an answer: SIGABRT")
    left = cells["leaves", "tied"]
    assert (left.state, left.reason) == ("error", "its process ended without an answer: exit status 0")


def test_a_cell_has_a_time_limit(cells):
    late = cells["sleeps", "tied"]
    assert (late.state, late.reason) == ("error", "took longer than 4 s")
    assert 4 <= late.seconds < 20


def test_the_rows_around_it_are_judged_as_ever(cells):
    for row in ("deepcopy", "ckpt_disagree"):
        assert " ".join(cells[row, recipe].state for recipe in RECIPES) == KNOWN[row]


def test_what_a_cell_prints_is_no_answer(cells):
    assert {cells["chatters", recipe].state for recipe in RECIPES} == {"ok"}


def test_a_missing_package_is_named(cells):
    assert {(cells["needs", r].state, cells["needs", r].reason) for r in RECIPES} == {
        ("not run", "needs no_such_package_of_mine")
    }


def test_progress_counts_every_cell_and_marks_every_row(events):
    steps = [event for event in events if isinstance(event, Progress)]
    assert [step.done for step in steps] == list(range(1, len(MISBEHAVING) * len(RECIPES) + 1))
    ends = [step.detail for step in steps if step.milestone]
    assert "aborts: 7 -, 1 error" in ends
    assert "deepcopy: 5 ok, 3 wrong" in ends
    assert len(ends) == len(MISBEHAVING)


def test_a_run_that_is_left_leaves_no_process():
    before = children()  # compilers that other tests started
    going = run(Plan(registry="rows_for_tests", rows="sleeps", recipes=("tied", "twice")))
    first = next(going)
    assert isinstance(first, Outcome)
    assert first.recipe == "twice"
    mine = children() - before
    assert len(mine) >= 2, "the server and the cell that sleeps"
    begin = time.monotonic()
    going.close()
    assert time.monotonic() - begin < 8
    assert not [name for name in mine if is_alive(name)]


def is_alive(name: str) -> bool:
    """A process that still runs; one that has ended and waits for its parent to look (state Z) does not."""
    try:
        return (PROCESSES / name / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children() -> set[str]:
    """The processes that were started from here, directly or not, as far as the system tells."""
    if not PROCESSES.is_dir():
        pytest.skip("this system does not list processes in /proc")
    parents = {}
    for folder in PROCESSES.glob("[0-9]*"):
        try:
            parents[folder.name] = (folder / "stat").read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
    found, grown = set(), {str(os.getpid())}
    while grown:
        grown = {name for name, parent in parents.items() if parent in grown}
        found |= grown
    return found


def test_a_server_that_cannot_start_is_an_error():
    with pytest.raises(RuntimeError, match="ended early: ModuleNotFoundError: No module named 'rows_of_nobody'"):
        list(run_elsewhere())


def run_elsewhere():
    """Run real cells with a registry that the server cannot import."""
    from tied.study.matrix import run as module

    plan = Plan(registry="rows_for_tests", rows="deepcopy", recipes=("tied",))
    with module._server(replace(plan, registry="rows_of_nobody"), plan.cells()) as lines:
        yield from lines


@pytest.mark.slow
def test_without_fork_the_cells_are_spawned(monkeypatch):
    from tied.study.matrix import run as module

    spawning = (
        "import tied.study.matrix.cell_server as serve; serve.FORKS = False; serve.STARTING_SECONDS = 60; serve.main()"
    )
    monkeypatch.setattr(module, "SERVER", spawning)
    found = list(run(Plan(registry="rows_for_tests", rows="aborts", recipes=("tied", "twice"))))
    assert {one.recipe: one.state for one in found if isinstance(one, Outcome)} == {"tied": "error", "twice": "-"}


# -- names ---------------------------------------------------------------------------------------------


def test_rows_are_chosen_by_name_or_theme():
    assert [row.name for row in Plan(rows="load_*").chosen_rows()] == [
        "load_state_dict",
        "load_assign",
        "load_assign_meta",
    ]
    assert [row.name for row in Plan(rows="graph").chosen_rows()] == ["compile", "export_unflatten"]
    assert len(Plan(kinds=("transposed", "identity")).cells()) == 61 * 15


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(AddressError) as caught:
        named_row("deepcpy", ROWS)
    assert caught.value.fix == "Did you mean 'deepcopy' or 'deepcopy_dec'?"
    with pytest.raises(AddressError, match="'twce' is no recipe of the matrix"):
        keys_of("twce", ["transposed"])
    with pytest.raises(AddressError, match=r"'tied\.nn' is no recipe of the matrix"):
        keys_of("tied.nn", ["transposed", "identity"])
    with pytest.raises(AddressError) as caught:
        Plan(rows="zzz*").chosen_rows()
    assert caught.value.fix.startswith("There are: tie_after_5sgd, ")


def test_a_recipe_has_two_names():
    assert keys_of("registered twice", ["transposed", "identity"]) == ("twice", "twice")
    assert keys_of("nn.Parameter(w.t())", ["transposed"]) == ("Parameter",)


# -- what is expected ----------------------------------------------------------------------------------


@pytest.mark.parametrize("known", known_results.known(), ids=lambda known: known.torch)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_an_expectation_is_kept_for_every_cell(known, kind):
    """Rows that need a package that was not there are left out."""
    rows = {row.name for row in ROWS if not row.needs or row.name in known.cells[kind.name]}
    assert set(known.cells[kind.name]) == rows
    for states in known.cells[kind.name].values():
        assert list(states) == [column.key for column in kind.columns]
        assert set(states.values()) <= set(STATES) - {"not run"}


def test_versions_are_known():
    assert [known.torch for known in known_results.known()] == ["2.6.0", "2.13.0", "2.15.0"]


def test_no_expectation_says_that_tied_is_wrong():
    for known in known_results.known():
        for kind in KINDS.values():
            ours = [column.key for column in kind.columns if column.ours]
            assert not [row for row, states in known.cells[kind.name].items() for key in ours if states[key] == "wrong"]


OUTCOME = Outcome("transposed", "prune_source", "twice", "ok")


def expecting(state: str, version: str = "2.13.0") -> Expectation:
    return Expectation(version, {"transposed": {"prune_source": {"twice": state}}})


def test_differences_are_told_in_one_line_each():
    assert list(map(str, expecting("wrong").differences([OUTCOME]))) == [
        "prune_source / twice (transposed): expected wrong, got ok"
    ]
    assert expecting("ok").differences([OUTCOME]) == []
    assert expecting("wrong").differences([replace(OUTCOME, state="not run")]) == []
    assert expecting("wrong").differences([replace(OUTCOME, row="new_row")]) == []


@pytest.mark.parametrize(
    ("mine", "nearest"),
    [
        ("2.6.0", "2.9.0"),
        ("2.11.0", "2.10.1"),
        ("2.12.1+cu130", "2.13.0"),
        ("2.13.1+cpu", "2.13.0"),
        ("3.0.0a0", "2.13.0"),
    ],
)
def test_the_nearest_version_is_chosen(monkeypatch, mine, nearest):
    known = [expecting("ok", version) for version in ("2.9.0", "2.10.1", "2.13.0")]
    monkeypatch.setattr(known_results, "known", lambda: known)
    monkeypatch.setattr(torch, "__version__", mine)
    assert known_results.nearest().torch == nearest
    assert known_results.nearest().is_of_this_torch == (mine == "2.13.1+cpu")


def test_an_expectation_is_written_and_read():
    text = known_results.to_text(
        [OUTCOME, replace(OUTCOME, recipe="tied", state="not run")], "2.13.0", expecting("wrong")
    )
    assert Expectation(**json.loads(text)) == expecting("ok")
    kept = known_results.to_text([replace(OUTCOME, state="not run")], "2.14.0", expecting("wrong"))
    assert Expectation(**json.loads(kept)) == expecting("wrong", "2.14.0")
