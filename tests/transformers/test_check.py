"""`tied.check` of transformers' architectures: agrees with plain torch, raises no false alarm, misses no cut."""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor, nn
from zoo import ZOO, Architecture

import tied

FAST = {"LlamaForCausalLM", "BertForMaskedLM", "T5ForConditionalGeneration", "ZambaForCausalLM"}
EACH = pytest.mark.parametrize(
    "architecture", [pytest.param(a, id=str(a), marks=() if str(a) in FAST else pytest.mark.slow) for a in ZOO]
)


def shared(model: nn.Module) -> set[frozenset[str]]:
    """Return the names of every Parameter in several slots: plain torch's own view."""
    names: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), set()).add(name)
    return {frozenset(group) for group in names.values() if len(group) > 1}


def leaves(report: tied.Report, *states: str) -> set[frozenset[str]]:
    """Return the names of the groups of tensors in these states, those inside of modules too."""
    groups = [group for group in report.groups if group.state in states]
    return {frozenset(part.names) for group in groups for part in (group.parts or (group,))}


def alarms(report: tied.Report) -> set[str]:
    return {finding.code for finding in report.findings if finding.severity != "note"}


def cloned(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assigned(state: Callable[[nn.Module], dict[str, Tensor]]) -> Callable[[nn.Module], nn.Module]:
    def assign(model: nn.Module) -> nn.Module:
        model.load_state_dict(state(model), assign=True)
        return model

    return assign


def drifted(model: nn.Module) -> nn.Module:
    state = cloned(model)
    model.load_state_dict(
        {name: t + torch.randn_like(t) if t.is_floating_point() else t for name, t in state.items()}, assign=True
    )
    return model


# What is done to a model, the state in which every group is then, and the alarm; None: all is well.
CUTS = {
    "nothing": (lambda model: model, "tied", None),
    "deepcopy": (copy.deepcopy, "tied", None),
    "bfloat16": (lambda model: model.to(torch.bfloat16), "tied", None),
    "load": (lambda model: model.load_state_dict(cloned(model)) and model, "tied", None),
    "assign-clones": (assigned(cloned), "equal", "TIE103"),
    "assign-its-own": (assigned(lambda model: model.state_dict()), "half-tied", "TIE101"),
    "assign-others": (drifted, "drifted", "TIE102"),
    "meta": (lambda model: model.to("meta"), "declared", "TIE104"),
}


@EACH
@pytest.mark.parametrize("cut", CUTS)
def test_every_cut_is_seen_and_nothing_else(architecture: Architecture, cut: str):
    act, state, alarm = CUTS[cut]
    model = architecture.build()
    before = shared(model)
    model = act(model)
    report = tied.check(model)
    assert before
    assert leaves(report, state) == before
    assert alarms(report) == ({alarm} if alarm else set())
    if state == "tied":
        assert report.parameters == sum(p.numel() for p in model.parameters())


@EACH
def test_emptied_models_are_cut(architecture: Architecture):
    model = architecture.build()
    before = shared(model)
    model = model.to("meta").to_empty(device="cpu")
    report = tied.check(model)
    assert leaves(report, "equal", "drifted") >= before  # what was in that memory may be anything
    assert alarms(report) <= {"TIE102", "TIE103"}
    assert alarms(report)


@EACH
def test_the_fix_of_a_cut_works(architecture: Architecture):
    model = assigned(cloned)(architecture.build())
    fixes = {finding.fix for finding in tied.check(model).findings if finding.code == "TIE103"}
    assert fixes == {"model.tie_weights()"}
    model.tie_weights()
    assert alarms(tied.check(model)) == set()


@EACH
def test_adopted_models_are_clean(architecture: Architecture):
    model = architecture.build()
    before = shared(model)
    tied.adopt(model)
    report = tied.check(model)
    assert alarms(report) == set()
    assert leaves(report, "tied") == {group for group in before if group <= set().union(*leaves(report, "tied"))}
    assert report.parameters == sum(p.numel() for p in model.parameters())


@EACH
def test_a_part_without_the_source_is_clean(architecture: Architecture, tmp_path: Path):
    model = architecture.build()
    for name, child in model.named_children():
        part = copy.deepcopy(child)
        report = tied.check(part)
        assert leaves(report, "tied") == shared(part), name
        if alarms(report):  # what the whole declares and the part shares without a word cannot be saved
            assert alarms(report) == {"TIE106"}, name
            with pytest.raises(RuntimeError, match="shared tensors"):
                part.save_pretrained(tmp_path)


@pytest.mark.slow
def test_no_false_alarm_and_no_miss_on_any_architecture_that_can_be_built():
    """As they are, tied, and untied, fresh from the library."""
    wrong, built, failed = [], set(), {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for made in tiny.declaring_classes():
            for wanted in ({}, {"tie_word_embeddings": True}, {"tie_word_embeddings": False}):
                try:
                    model = tiny.build(made, **wanted)
                except Exception as error:
                    failed[made.__name__] = type(error).__name__
                    break
                report, groups = tied.check(model), shared(model)
                built.add(made.__name__)
                right = leaves(report, "tied") == groups and not alarms(report)
                right &= report.parameters == sum(p.numel() for p in model.parameters())
                right &= leaves(report, "equal", "drifted", "declared", "half-tied") == set()
                if not right:
                    wrong.append((made.__name__, wanted, report.findings))
    assert not wrong
    assert len(built) >= 300, failed


# -- what transformers itself does not show --------------------------------------------------------------


def llama(**changes: object) -> nn.Module:
    (architecture,) = (a for a in ZOO if str(a) == "LlamaForCausalLM")
    return type(architecture)(architecture.model, architecture.sizes | changes, architecture.inputs).build()


def test_tied_by_hand_and_not_by_the_configuration():
    model = llama(tie_word_embeddings=False)
    assert alarms(tied.check(model)) == set()
    model.lm_head.weight = model.model.embed_tokens.weight
    assert alarms(tied.check(model)) == {"TIE106"}


def test_tied_by_the_configuration_and_left_apart_on_loading(tmp_path):
    """transformers ties no two values that differ, and forgets the declaration; the configuration stays."""
    model = llama(tie_word_embeddings=False)
    model.save_pretrained(tmp_path)
    configuration = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(
        configuration.replace('"tie_word_embeddings": false', '"tie_word_embeddings": true')
    )
    loaded = type(model).from_pretrained(tmp_path)
    assert loaded.lm_head.weight is not loaded.model.embed_tokens.weight
    report = tied.check(loaded)
    assert leaves(report, "drifted") == {frozenset({"lm_head.weight", "model.embed_tokens.weight"})}
    assert alarms(report) == {"TIE102"}


def test_a_replaced_head():
    model = llama()
    model.lm_head = nn.Identity()
    report = tied.check(model)
    assert [f.code for f in report.findings if f.code != "TIE201"] == ["TIE108"]
    assert alarms(report) == set()


def test_inside_of_another_model():
    model = nn.ModuleDict({"teacher": llama(), "student": llama()})
    for parameter in model.student.parameters():
        parameter.data.add_(torch.randn_like(parameter))
    report = tied.check(model)
    assert alarms(report) == set()
    assert len(leaves(report, "tied")) == 2
    assigned(cloned)(model.student)
    (finding,) = [f for f in tied.check(model).findings if f.severity != "note"]
    assert (finding.code, finding.names) == ("TIE103", ("student.model.embed_tokens.weight", "student.lm_head.weight"))


def test_albert_calls_one_layer_many_times():
    (architecture,) = (a for a in ZOO if str(a) == "AlbertForMaskedLM")
    model = architecture.build()
    called = [group for group in tied.check(model).groups if group.state == "called"]
    assert [(group.names, group.transforms) for group in called] == [
        (("albert.encoder.albert_layer_groups.0",), ("2 calls",))
    ]
    given = [group for group in tied.check(model, architecture.inputs()).groups if group.state == "called"]
    assert given == called


def test_the_trace_on_meta_leaves_the_model_alone():
    for architecture in ZOO:
        if str(architecture) in FAST:
            model = architecture.build()
            before = {
                name: (id(t), t._version, t.device) for name, t in [*model.named_parameters(), *model.named_buffers()]
            }
            states = {name: set(module.__dict__) for name, module in model.named_modules()}
            tied.check(model)
            after = {
                name: (id(t), t._version, t.device) for name, t in [*model.named_parameters(), *model.named_buffers()]
            }
            assert after == before
            assert {name: set(module.__dict__) for name, module in model.named_modules()} == states
