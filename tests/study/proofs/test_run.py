"""The run: order, time, a proof that breaks off; and the report of made-up measurements, whole."""

import json
import math

from tied.reporting.table import to_text
from tied.study.progress import Progress
from tied.study.proofs.proof import Control, Measurement, Outcome, Proof, at_most, exactly
from tied.study.proofs.report import Record, sentences, table
from tied.study.proofs.run import run

SMALL = Measurement("it is small", 1e-15, at_most(1e-12), Control("made large", 0.25), note="It costs half.")
MISSED = Measurement("it is one", 0.5, exactly(1), Control("made two", 2.0))
HOLLOW = Measurement("it is below two", 1.0, at_most(2), Control("made smaller", 0.5))


def of(*measurements):
    return lambda: iter(measurements)


def breaks():
    yield SMALL
    raise RuntimeError("no such kernel")


GOOD = Proof("size", "Small is small", of(SMALL), "Someone 1999")
BAD = Proof("one", "One is one", of(MISSED, HOLLOW))
BROKEN = Proof("kernel", "It runs", breaks)


def recorded(*proofs) -> Record:
    record = Record(proofs)
    for event in run(proofs):
        if isinstance(event, Outcome):
            record.add(Outcome(event.proof, event.finding, 1.25))
    record.elapsed_seconds = 7.4
    return record


def test_events_come_in_order():
    events = list(run((GOOD, BAD)))
    kinds = [event.detail if isinstance(event, Progress) else event.finding for event in events]
    assert kinds == ["Small is small", SMALL, "size: holds", "One is one", MISSED, HOLLOW, "one: does not hold"]
    assert [event.milestone for event in events if isinstance(event, Progress)] == [False, True, False, True]
    assert [event.done for event in events if isinstance(event, Progress)] == [0, 1, 1, 2]


def test_time_is_that_of_each_finding(monkeypatch):
    clock = iter([0.0, 2.0, 2.0, 5.0, 5.0])
    monkeypatch.setattr("tied.study.proofs.run.time.perf_counter", lambda: next(clock))
    assert [event.seconds for event in run((BAD,)) if isinstance(event, Outcome)] == [2.0, 3.0]


def test_a_proof_that_breaks_off_does_not_hold_and_the_others_go_on():
    record = recorded(BROKEN, GOOD)
    assert [outcome.finding.claim for outcome in record.outcomes] == [
        "it is small",
        "the proof runs to its end",
        "it is small",
    ]
    lost = record.outcomes[1].finding
    assert math.isnan(lost.measured)
    assert lost.note == "RuntimeError: no such kernel"
    assert record.missed() == [record.outcomes[1]]


def test_report(golden):
    record = recorded(GOOD, BAD, BROKEN)
    golden("proofs.txt", to_text(table(record)) + "\n\n" + "\n".join(sentences(record)) + "\n")


def test_table_of_the_last_rows():
    record = recorded(GOOD, BAD)
    assert len(table(record, last=3).rows) == 3
    assert table(record, last=3).rows == table(record).rows[-3:]
    assert [cell.tone for cell in table(record).rows[4]] == ["plain", "plain", "plain", "bad", "plain"]


def test_nothing_measured_is_an_empty_table():
    assert table(Record((GOOD,))).rows == ()


def test_json():
    record = recorded(GOOD)
    known = record.to_json()
    assert known["proven"] is True
    assert known["proofs"] == [{"name": "size", "title": "Small is small", "source": "Someone 1999"}]
    assert known["findings"] == [outcome.to_json() for outcome in record.outcomes]
    assert json.loads(json.dumps(known, allow_nan=False)) == known


def test_json_says_proven_only_of_a_whole_run_without_a_miss():
    assert recorded(GOOD, BAD).to_json()["proven"] is False
    stopped = recorded(GOOD)
    stopped.interrupted = True
    assert stopped.to_json()["proven"] is False
