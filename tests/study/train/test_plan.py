"""Plans: defaults, and values that make no sense."""

import dataclasses
import subprocess
import sys

import pytest

from tied.study.train import AutoencoderPlan, LanguagePlan, PlanError


@pytest.mark.parametrize(
    ("plan", "values", "message"),
    [
        (AutoencoderPlan, {"epochs": 0}, "--epochs must be 1 or more, not 0"),
        (AutoencoderPlan, {"batch_size": 0}, "--batch-size must be 1 or more, not 0"),
        (AutoencoderPlan, {"lr": 0.0}, "--lr must be more than 0, not 0.0"),
        (AutoencoderPlan, {"lr": float("nan")}, "--lr must be more than 0, not nan"),
        (AutoencoderPlan, {"lr": float("inf")}, "--lr must be more than 0, not inf"),
        (AutoencoderPlan, {"seed": -1}, "--seed must be 0 or more, not -1"),
        (AutoencoderPlan, {"patience": -1}, "--patience must be 0 or more, not -1"),
        (AutoencoderPlan, {"sizes": (3, 0)}, "--sizes must be positive integers, such as 128,16, not 3,0"),
        (AutoencoderPlan, {"sizes": (True,)}, "--sizes must be positive integers, such as 128,16, not True"),
        (AutoencoderPlan, {"denoise": 1.0}, "--denoise must be at least 0 and less than 1, not 1.0"),
        (AutoencoderPlan, {"denoise": -0.1}, "--denoise must be at least 0 and less than 1, not -0.1"),
        (AutoencoderPlan, {"loops": -1}, "--loops must be 0 or more, not -1"),
        (LanguagePlan, {"tokens": "bytes"}, "--tokens must be words or characters, not bytes"),
        (LanguagePlan, {"network": "gru"}, "--network must be lstm or transformer, not gru"),
        (LanguagePlan, {"width": 0}, "--width must be 1 or more, not 0"),
        (LanguagePlan, {"layers": 0}, "--layers must be 1 or more, not 0"),
        (LanguagePlan, {"context": 0}, "--context must be 1 or more, not 0"),
        (LanguagePlan, {"dropout": 1.0}, "--dropout must be at least 0 and less than 1, not 1.0"),
        (LanguagePlan, {"loops": -1, "network": "transformer"}, "--loops must be 0 or more, not -1"),
        (LanguagePlan, {"loops": 3}, "--loops must be 0 with --network lstm, not 3"),
    ],
)
def test_what_makes_no_sense_is_one_line(plan, values, message):
    with pytest.raises(PlanError) as caught:
        plan(**values)
    assert str(caught.value) == message


def test_sizes_have_defaults_by_kind():
    assert AutoencoderPlan().widths == (128, 16)
    assert AutoencoderPlan(conv=True).widths == (32, 8)
    assert AutoencoderPlan(sizes=(5,), conv=True).widths == (5,)


def test_names():
    assert AutoencoderPlan(seed=3).name == "tied-seed-3"
    assert LanguagePlan(tie=False).name == "untied-seed-0"


def test_every_field_has_words_for_the_command_line():
    for plan in (AutoencoderPlan, LanguagePlan):
        assert all(field.metadata["help"].endswith((".", "]", "--layers.")) for field in dataclasses.fields(plan))


def test_plans_are_there_without_torch():
    code = "import sys, tied.study.train.plan, tied.study.train.errors; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_public_names():
    import tied.study.train as room

    assert {"AutoencoderPlan", "DataError", "compare", "train", "Samples"} <= set(dir(room))
    assert room.train.__module__ == "tied.study.train.run"
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = room.trian
