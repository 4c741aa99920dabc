"""What other libraries declare and wrap: transformers' older form, accelerate, peft, DeepSpeed; each told by hand."""

import types

import pytest
import torch
from torch import nn
from torch.nn import Parameter

import tied


class Config:
    tie_word_embeddings = True


class Pretrained(nn.Module):
    """What `tied` knows a model of transformers by."""

    def __init__(self, keys: object, tie: bool = True) -> None:
        super().__init__()
        self._tied_weights_keys = keys
        self.config = Config()
        self.config.tie_word_embeddings = tie


class LanguageModel(Pretrained):
    def __init__(self, keys: object, tie: bool = True) -> None:
        super().__init__(keys, tie)
        self.embed = nn.Embedding(20, 4)
        self.body = nn.Linear(4, 4)
        self.head = nn.Module()
        self.head.decoder = nn.Linear(4, 20)
        self.head.bias = Parameter(torch.zeros(20))

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def tie(self) -> "LanguageModel":
        self.head.decoder.weight, self.head.decoder.bias = self.embed.weight, self.head.bias
        return self


def alarms(model: nn.Module) -> list[tuple[str, tuple[str, ...]]]:
    return [(f.code, f.names) for f in tied.check(model).findings if f.severity != "note"]


OLD = {
    "names": ["head.decoder.weight", "head.decoder.bias"],
    "patterns": [r"decoder\.weight", r".*decoder.bias$"],
}


@pytest.mark.parametrize("form", OLD)
def test_the_older_form_is_a_list(form):
    assert alarms(LanguageModel(OLD[form]).tie()) == []
    assert alarms(LanguageModel(OLD[form], tie=False)) == []
    apart = LanguageModel(OLD[form])
    nn.init.zeros_(apart.head.decoder.bias)
    assert alarms(apart) == [
        ("TIE102", ("embed.weight", "head.decoder.weight")),
        ("TIE103", ("head.bias", "head.decoder.bias")),
    ]


def test_the_older_form_may_name_what_is_not_there():
    assert alarms(LanguageModel([*OLD["names"], "lm_head.weight", "cls.predictions"]).tie()) == []


def test_the_older_form_ties_no_other_shape():
    assert alarms(LanguageModel(["body.weight", *OLD["names"]]).tie()) == []


def test_shared_buffers_and_half_tied_weights_are_no_undeclared_ones():
    model = Heads({})
    model.heads[0].register_buffer("table", torch.randn(4))
    model.heads[1].register_buffer("table", model.heads[0].table)
    assert alarms(model) == []
    model.heads[1].weight = Parameter(model.heads[0].weight.detach())
    assert [code for code, _ in alarms(model)] == ["TIE101"]


def test_keys_without_a_configuration_declare_nothing():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model._tied_weights_keys = {"1.weight": "0.weight"}
    assert tied.check(model).groups == ()


@pytest.mark.parametrize("keys", [None, [], {}])
def test_nothing_is_declared(keys):
    assert alarms(LanguageModel(keys)) == []


def test_the_newer_form_is_a_dict():
    keys = {"head.decoder.weight": "embed.weight", "head.decoder.bias": "head.bias"}
    assert alarms(LanguageModel(keys).tie()) == []
    assert [code for code, _ in alarms(LanguageModel(keys))] == ["TIE102", "TIE102"]
    assert alarms(LanguageModel(keys, tie=False)) == []


def test_a_name_is_no_pattern():
    keys = {"head.decoder.weight": "embed.weight", "head.decoder.bias": "head.bias"}
    model = LanguageModel(keys).tie()
    model.head.decoder.weight_of_another = Parameter(torch.randn(20, 4))
    assert alarms(model) == []


class Heads(Pretrained):
    def __init__(self, keys: dict[str, str], count: int = 3) -> None:
        super().__init__(keys)
        self.heads = nn.ModuleList(nn.Linear(4, 4) for _ in range(count))
        self.copies = nn.ModuleList(nn.Linear(4, 4) for _ in range(count))


def test_patterns_and_modules_are_expanded():
    model = Heads({r"heads.(?![0])\d+": "heads.0"})
    report = tied.check(model)
    assert {g.names for g in report.groups} == {("heads.0", "heads.1", "heads.2")}
    assert [f.code for f in report.findings] == ["TIE102"]
    for head in (model.heads[1], model.heads[2]):
        head.weight, head.bias = model.heads[0].weight, model.heads[0].bias
    assert alarms(model) == []


def test_a_rule_that_a_later_one_undoes():
    """As in rt_detr_v2: the later rule gives the targets of the earlier one other sources."""
    model = Heads({r"heads.(?![0])\d+": "heads.0", "heads": "copies"})
    for head, other in zip(model.heads, model.copies, strict=True):
        head.weight, head.bias = other.weight, other.bias
    report = tied.check(model)
    assert report.ok
    assert [(f.code, f.names) for f in report.findings] == [("TIE107", ("heads.1.bias", "heads.0.bias"))]
    assert "'heads.(?![0])\\d+' = 'heads.0'" in report.findings[0].message


def share(one: nn.Module, other: nn.Module) -> None:
    one.weight, one.bias = other.weight, other.bias


def test_a_chain_of_rules_undoes_nothing():
    model = Heads({"heads.1": "heads.0", "heads.2": "heads.1"})
    share(model.heads[1], model.heads[0])
    share(model.heads[2], model.heads[0])
    assert tied.check(model).findings == ()


def test_a_chain_of_rules_is_one_group():
    for keys in ({"heads.1": "heads.0", "heads.2": "heads.1"}, {"heads.2": "heads.1", "heads.1": "heads.0"}):
        report = tied.check(Heads(keys))
        assert [set(group.names) for group in report.groups] == [{"heads.0", "heads.1", "heads.2"}]
        assert [finding.code for finding in report.findings if finding.severity != "note"] == ["TIE102"]


def test_a_rule_that_holds_in_part_is_not_undone():
    model = Heads({r"heads.(?![0])\d+": "heads.0", "heads.1": "copies.1"})
    share(model.heads[1], model.copies[1])
    share(model.heads[2], model.heads[0])
    assert tied.check(model).findings == ()


def test_a_rule_that_does_not_come_out_even_declares_nothing():
    model = Heads({"heads": "copies"})
    del model.copies[2]
    assert tied.check(model).findings == ()


def test_nested_configurations_are_read_each_for_itself():
    keys = {"head.decoder.weight": "embed.weight"}
    model = Pretrained(None, tie=False)
    model.text, model.other = LanguageModel(keys), LanguageModel(keys, tie=False)
    assert alarms(model) == [("TIE102", ("text.embed.weight", "text.head.decoder.weight"))]
    (finding,) = tied.check(model).findings
    assert finding.fix.startswith(
        'model.get_submodule("text").tie_weights()  # loses'
    )  # the outer one has no such method


class Saved(nn.Module):
    """A module of peft that trains a copy."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.original_module = base
        self.modules_to_save = nn.ModuleDict({"default": nn.Linear(4, 4)})


def test_a_layer_that_lost_its_adapters_has_none():
    model = nn.ModuleDict({"embed": nn.Embedding(20, 4), "head": nn.Module()})
    model.head.base_layer, model.head.lora_A = nn.Linear(4, 20, bias=False), nn.ModuleDict({"x": nn.Linear(4, 2)})
    model.head.base_layer.weight = model.embed.weight
    assert [code for code, _ in alarms(model)] == ["TIE411"]
    del model.head.lora_A.x
    assert alarms(model) == []


def test_rules_are_about_names_as_they_were_before_adapters():
    model = Heads({"heads": "copies"})
    for head, other in zip(model.heads, model.copies, strict=True):
        share(head, other)
    model.heads[0] = Saved(model.heads[0])
    assert {code for code, _ in alarms(model)} == {"TIE412"}
    del model.heads[0].modules_to_save.default
    assert alarms(model) == []


def test_what_cannot_be_read_is_not_called_drifted():
    model = Heads({"heads.1": "heads.0", "heads.2": "heads.0"})
    model.heads[2].to("meta")
    report = tied.check(model)
    assert {group.state for group in report.groups} == {"declared"}
    assert {finding.code for finding in report.findings} == {"TIE501"}


# -- accelerate -----------------------------------------------------------------------------------------


def test_weights_that_accelerate_keeps_elsewhere_are_no_cut(tmp_path):
    """Offloaded weights are on meta between calls; that they are apart there says nothing."""
    accelerate = pytest.importorskip("accelerate")
    keys = {"head.decoder.weight": "embed.weight"}
    model = LanguageModel(keys)
    model.head.decoder.weight = model.embed.weight
    model.forward = types.MethodType(lambda self, t: self.head.decoder(self.body(self.embed(t))), model)
    offloaded = accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    assert offloaded.embed.weight.device.type == "meta"
    report = tied.check(offloaded)
    assert report.ok, str(report)
    assert {g.state for g in report.groups} <= {"declared", "tied"}
    without = LanguageModel(keys).to("meta")
    assert [code for code, _ in alarms(without)] == ["TIE104"]


# -- peft -----------------------------------------------------------------------------------------------


def tiny_llama() -> nn.Module:
    from zoo import ZOO

    (architecture,) = (a for a in ZOO if str(a) == "LlamaForCausalLM")
    return architecture.build()


def with_peft(**options: object) -> nn.Module:
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(tiny_llama(), peft.LoraConfig(task_type="CAUSAL_LM", r=2, **options))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"target_modules": ["q_proj"]}, set()),
        ({"target_modules": ["q_proj", "lm_head"]}, {"TIE411"}),
        ({"target_modules": ["q_proj", "embed_tokens"]}, {"TIE411"}),
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, {"TIE412"}),
    ],
)
def test_an_adapter_on_one_end(options, expected):
    report = tied.check(with_peft(**options))
    found = {f.code for f in report.findings if f.severity != "note"}
    assert found == expected, str(report)
    assert "tied" in {group.state for group in report.groups}


@pytest.mark.filterwarnings("ignore")
def test_merging_an_adapter_on_one_end_changes_the_other():
    """The claim of TIE411, measured."""
    model = with_peft(target_modules=["lm_head"])
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    embedding = model.base_model.model.model.embed_tokens.weight
    before = embedding.detach().clone()
    model.merge_adapter()
    assert not torch.equal(before, embedding)


# -- DeepSpeed --------------------------------------------------------------------------------------------


def test_tied_layers_of_a_pipeline():
    spec = types.SimpleNamespace(key="embed", tied_weight_attr=["weight"])
    stage = nn.Module()
    stage.tied_modules = nn.ModuleDict({"embed": nn.Embedding(9, 4)})
    stage._layer_specs = [spec, types.SimpleNamespace(), spec]
    report = tied.check(stage)
    assert [(g.state, g.names, g.transforms) for g in report.groups] == [
        ("called", ("tied_modules.embed",), ("2 layers",))
    ]
    assert report.ok
    stage._layer_specs = [spec]
    assert tied.check(stage).groups == ()
