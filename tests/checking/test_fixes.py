"""Every fix is pasted as it stands, and mends what it is for; a rule without a fix needs none."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import SGD, AdamW, Optimizer

import tied
from tied.reporting.rules import RULES

NEEDS_NONE = {"TIE107", "TIE108", "TIE111"}  # rules of a library that do nothing; a line of the user's forward
OF_FILES = {code for code in RULES if code.startswith("TIE3")}
OF_SOURCE = {code for code in RULES if code.startswith("TIE6")}  # their fixes run in `source/test_fixes.py`


class Pretrained(nn.Module):
    """What `tied` knows a model of transformers by, and what that does."""

    def __init__(self, tie: bool = True) -> None:
        super().__init__()
        self._tied_weights_keys = {"head.weight": "embed.weight"}
        self.config = type("Config", (), {"tie_word_embeddings": tie})
        self.embed, self.head = nn.Embedding(60, 16), nn.Linear(16, 60, bias=False)
        nn.init.normal_(self.embed.weight, std=0.02)
        if tie:
            self.tie_weights()

    def tie_weights(self) -> None:
        if self.config.tie_word_embeddings:
            self.head.weight = self.embed.weight


class Autoencoder(nn.Module):
    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(24, 8, bias=bias), nn.Linear(8, 24, bias=bias)


def half_tied() -> nn.Module:
    model = Autoencoder()
    model.decoder.weight = Parameter(model.encoder.weight.t())
    return model


def language_model(**options: Any) -> nn.Module:
    model = nn.ModuleDict({"embed": nn.Embedding(60, 16, **options), "head": nn.Linear(16, 60, bias=False)})
    nn.init.normal_(model.embed.weight, std=0.02)
    model.head.weight = model.embed.weight
    return model


def cut(model: nn.Module, change: Callable[[Tensor], Tensor] = torch.clone) -> nn.Module:
    model.load_state_dict({name: change(tensor) for name, tensor in model.state_dict().items()}, assign=True)
    return model


def overlapping() -> nn.Module:
    buffer = torch.randn(30)
    return nn.ParameterDict({"a": Parameter(buffer[:20]), "b": Parameter(buffer[10:])})


def undeclared(*, by_rule: bool) -> nn.Module:
    model = Pretrained(tie=False)
    if by_rule:
        model.head.weight = model.embed.weight
    else:
        model.gate = nn.Linear(16, 60, bias=False)
        model.head.weight = model.gate.weight
    return model


def replaced() -> nn.Module:
    model = Autoencoder()
    tied.tie(model, "decoder.weight", "encoder.weight.T")
    model.decoder = nn.Linear(8, 24)
    return model


def over_a_buffer(path: str) -> nn.Module:
    model, table = nn.Sequential(nn.Module()), torch.randn(5, 5)
    model.get_submodule(path).register_buffer("table", table.T)
    model.weight = Parameter(table)
    return model


def copied() -> nn.Module:
    model = Autoencoder()
    with torch.no_grad():
        model.decoder.weight.copy_(2 * model.encoder.weight.T)
    return model


def norms(kind: str) -> nn.Module:
    norm = nn.BatchNorm1d(4)
    if kind == "blocks":
        block = nn.Sequential(nn.Linear(4, 4), norm)
        return nn.ModuleDict({"a": nn.Sequential(block), "b": nn.Sequential(block)})
    other = nn.BatchNorm1d(4)
    other.running_mean, other.running_var = norm.running_mean, norm.running_var
    return nn.ModuleDict({"a": norm, "b": norm if kind == "one" else other})


def frozen() -> nn.Module:
    model = Autoencoder()
    model.decoder.weight = Parameter(model.encoder.weight.t(), requires_grad=False)
    return model


def even(*, bias: bool) -> nn.Module:
    model = nn.ModuleDict({"layer": nn.Linear(6, 4, bias=bias)})
    model.row = Parameter(torch.randn(6))
    tied.tie(model, "layer.weight", "row.expand(4, 6)")
    if bias:
        nn.init.zeros_(model.layer.bias)
    return model


class Following(Autoencoder):
    """Copies in its forward; `inputs` are what it is looked at with."""

    inputs = torch.rand(2, 24)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.decoder.weight.copy_(self.encoder.weight.t())
        return self.decoder(self.encoder(x))


class Adapted(nn.Module):
    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base_layer, self.lora_A = base, nn.ModuleDict({"default": nn.Linear(16, 2)})


class Saved(nn.Module):
    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.original_module = base
        self.modules_to_save = nn.ModuleDict({"default": copy.deepcopy(base)})


def adapted(model: nn.Module) -> nn.Module:
    model.head = Adapted(model.head)
    return model


def adapted_and_declared() -> nn.Module:
    model = nn.ModuleDict({"embed": nn.Embedding(60, 16), "head": nn.Linear(16, 60, bias=False)})
    nn.init.normal_(model.embed.weight, std=0.02)
    tied.tie(model, "head.weight", "embed.weight")
    return adapted(model)


def saved(model: nn.Module) -> nn.Module:
    model.head = Saved(model.head)
    nn.init.normal_(model.head.modules_to_save.default.weight)
    return model


def saved_twice() -> nn.Module:
    model = language_model()
    model["embed"], model["head"] = Saved(model.embed), Saved(model.head)
    nn.init.normal_(model.embed.modules_to_save.default.weight, std=0.1)
    nn.init.normal_(model.head.modules_to_save.default.weight, std=0.1)
    return model


def trained(make: Callable[[], nn.Module], settings: Callable[[nn.Module], Any], kind: Any = AdamW) -> Any:
    def made() -> tuple[nn.Module, Optimizer]:
        model = make()
        return model, kind(settings(model), lr=0.125)

    return made


def late() -> tuple[nn.Module, Optimizer]:
    model = Autoencoder()
    optimizer = SGD(model.parameters(), lr=0.125, momentum=0.75, nesterov=True)
    tied.tie(model, "decoder.weight", "encoder.weight.T")
    return model, optimizer


def two_optimizers() -> tuple[nn.Module, list[Optimizer]]:
    model = Autoencoder()
    return model, [AdamW(model.encoder.parameters()), AdamW(model.parameters())]


def two_settings(model: nn.Module) -> list[dict[str, Any]]:
    parts = (model.encoder.parameters(), 0.1), (model.decoder.parameters(), 0.0)
    return [{"params": list(own), "weight_decay": decay} for own, decay in parts]


class Case(NamedTuple):
    """A code, what triggers it, the codes that may be there beside it, and those that are true of what was mended."""

    code: str
    make: Callable[[], Any]
    beside: frozenset[str] = frozenset()
    after: frozenset[str] = frozenset()


CASES = [
    Case("TIE101", half_tied),
    Case("TIE101", overlapping),
    Case("TIE101", lambda: cut(Pretrained(), torch.detach)),
    Case("TIE101", lambda: nn.ModuleDict({"inside": cut(Pretrained(), torch.detach)})),
    Case("TIE102", lambda: cut(Pretrained(), torch.rand_like)),
    Case("TIE102", lambda: nn.ModuleDict({"inside": cut(Pretrained(), torch.rand_like)})),
    Case("TIE103", lambda: cut(Pretrained())),
    Case("TIE103", lambda: nn.ModuleDict({"inside": cut(Pretrained())})),
    Case("TIE104", lambda: Pretrained().to("meta")),
    Case("TIE105", copied),
    Case("TIE106", lambda: undeclared(by_rule=True)),
    Case("TIE106", lambda: nn.Sequential(undeclared(by_rule=True))),
    Case("TIE106", lambda: undeclared(by_rule=False)),
    Case("TIE109", replaced),
    Case("TIE110", lambda: over_a_buffer("")),
    Case("TIE110", lambda: over_a_buffer("0")),
    Case("TIE112", Following),
    Case("TIE201", lambda: language_model(padding_idx=3)),
    Case("TIE202", lambda: language_model(max_norm=1.0)),
    Case("TIE203", lambda: language_model(sparse=True)),
    Case("TIE205", lambda: norms("one")),
    Case("TIE205", lambda: norms("statistics")),
    Case("TIE205", lambda: norms("blocks")),
    Case("TIE206", frozen, frozenset({"TIE101"})),
    Case("TIE207", lambda: even(bias=True)),
    Case("TIE207", lambda: even(bias=False)),
    Case("TIE402", trained(half_tied, lambda model: model.parameters()), frozenset({"TIE101"})),
    Case("TIE402", trained(overlapping, lambda model: model.parameters()), frozenset({"TIE101"})),
    Case("TIE403", trained(half_tied, two_settings), frozenset({"TIE101"})),
    Case(
        "TIE404",
        trained(
            lambda: nn.ModuleDict({"lm": language_model(), "extra": nn.Linear(4, 4)}), lambda m: m.extra.parameters()
        ),
    ),
    Case("TIE405", late),
    Case("TIE406", two_optimizers),
    Case("TIE411", lambda: adapted(language_model())),
    Case("TIE411", lambda: adapted(Pretrained())),
    Case("TIE411", adapted_and_declared),
    Case("TIE412", lambda: saved(language_model()), after=frozenset({"TIE204"})),
    Case("TIE412", lambda: saved(Pretrained())),
    Case("TIE412", saved_twice),
    Case("TIE501", lambda: on_two_devices()),
]


def on_two_devices() -> nn.Module:
    """`meta` serves as the second device."""
    model = Pretrained()
    model.head.to("meta")
    model.tie_weights = Pretrained.tie_weights.__get__(model)
    return model


def look(model: nn.Module, optimizer: Any) -> tied.Report:
    return tied.check(model, getattr(model, "inputs", None), optimizer=optimizer)


def pasted(fix: str, model: nn.Module, optimizer: Optimizer | None) -> Optimizer | None:
    names = {"model": model, "optimizer": optimizer, "tied": tied, "torch": torch}
    exec(fix, names)
    return names["optimizer"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.code)
def test_each_fix_mends_what_it_is_for(case: Case):
    made = case.make()
    model, optimizer = made if isinstance(made, tuple) else (made, None)
    report = look(model, optimizer)
    codes = [finding.code for finding in report.findings]
    assert set(codes) == {case.code} | case.beside
    assert len(codes) == len(set(codes)), "each is said once"
    for finding in report.findings:
        if finding.code == case.code:
            optimizer = pasted(finding.fix, model, optimizer)
    after = look(model, optimizer)
    mended = case.code == "TIE201" or case.code not in {finding.code for finding in after.findings}
    assert mended, str(after)
    notes = {"TIE201", "TIE105"}  # the first says what a hook cannot show; what was parted is equal for a while
    assert {finding.code for finding in after.findings} <= case.beside | case.after | notes, str(after)


def test_every_rule_of_models_has_a_case():
    here = {case.code for case in CASES} | {"TIE204", "TIE401"}
    assert here == RULES.keys() - NEEDS_NONE - OF_FILES - OF_SOURCE


def test_a_padding_row_gets_no_gradient_by_the_fix_of_its_note():
    model = language_model(padding_idx=3)
    (finding,) = tied.check(model).findings
    pasted(finding.fix, model, None)
    model.head(model.embed(torch.tensor([1, 2]))).square().sum().backward()
    assert not model.embed.weight.grad[3].any()
    assert model.embed.weight.grad[4].any()


def test_a_wide_embedding_is_drawn_anew():
    model = language_model()
    nn.init.normal_(model.embed.weight)
    (finding,) = tied.check(model).findings
    assert finding.code == "TIE204"
    pasted(finding.fix, model, None)
    assert tied.check(model).findings == ()


def test_an_optimizer_keeps_its_settings_and_its_state():
    model = language_model()
    with pytest.warns(UserWarning, match="duplicate"):
        optimizer = AdamW([model.embed.weight, model.head.weight], lr=torch.tensor(0.125), betas=(0.5, 0.75), eps=1e-6)
    (finding,) = tied.check(model, optimizer=optimizer).findings
    assert finding.code == "TIE401"
    assert pasted(finding.fix, model, optimizer) is optimizer
    assert tied.check(model, optimizer=optimizer).findings == ()
    assert {k: optimizer.defaults[k] for k in ("betas", "eps")} == {"betas": (0.5, 0.75), "eps": 1e-6}


def test_what_is_stale_leaves_the_optimizer_with_its_state():
    model, optimizer = late()
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    (finding,) = tied.check(model, optimizer=optimizer).findings
    pasted(finding.fix, model, optimizer)
    assert optimizer.state.keys() == set(model.parameters())
    optimizer.load_state_dict(optimizer.state_dict())


def test_what_is_no_optimizer_is_refused():
    with pytest.raises(tied.KindError) as error:
        tied.check(Autoencoder(), optimizer=[AdamW(Autoencoder().parameters()), 3])
    assert str(error.value) == (
        "check(Autoencoder)\n"
        "  What was given as optimizer= is no optimizer.\n"
        "  found:    int\n"
        "  expected: a torch.optim.Optimizer, or a list of them\n"
        "  fix:      tied.check(model, optimizer=optimizer)\n"
        "The model was not changed."
    )


def test_one_learning_rate_as_two_tensors_is_one_setting():
    model = half_tied()
    groups = [{"params": list(p.parameters()), "lr": torch.tensor(0.1)} for p in (model.encoder, model.decoder)]
    assert [f.code for f in tied.check(model, optimizer=AdamW(groups)).findings] == ["TIE101", "TIE402"]


def test_the_other_way_out_of_drifted_keeps_both():
    model = nn.ModuleDict({"inside": cut(Pretrained(), torch.rand_like)})
    (finding,) = tied.check(model).findings
    other = finding.fix.partition("to keep both: ")[2]
    assert other == 'model.get_submodule("inside").config.tie_word_embeddings = False'
    pasted(other, model, None)
    assert tied.check(model).findings == ()


def test_norms_that_are_parted_keep_their_weights_tied():
    for kind in ("one", "blocks"):
        model = norms(kind)
        (finding,) = [f for f in tied.check(model).findings if f.code == "TIE205"]
        before = sum(p.numel() for p in model.parameters())
        pasted(finding.fix, model, None)
        assert sum(p.numel() for p in model.parameters()) == before
        names = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
        one, two = [model.get_submodule(n) for n in names if isinstance(model.get_submodule(n), nn.BatchNorm1d)]
        one.running_mean.fill_(3)
        assert not two.running_mean.any()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("code", "options"),
    [
        ("TIE411", {"target_modules": ["q_proj", "lm_head"]}),
        ("TIE411", {"target_modules": ["q_proj", "embed_tokens"]}),
        ("TIE412", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
        ("TIE412", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
    ],
)
def test_the_fixes_of_adapters_mend_models_of_peft(code: str, options: dict[str, list[str]]):
    peft = pytest.importorskip("peft")
    from zoo import ZOO

    (architecture,) = (a for a in ZOO if str(a) == "LlamaForCausalLM")
    model = peft.get_peft_model(architecture.build(), peft.LoraConfig(task_type="CAUSAL_LM", r=2, **options))
    (finding,) = [found for found in tied.check(model).findings if found.severity != "note"]
    assert finding.code == code
    pasted(finding.fix, model, None)
    report = tied.check(model)
    assert report.ok, str(report)
    if code == "TIE411":
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.normal_()
        ends = [t for n, t in model.named_parameters() if n.endswith(("embed_tokens.weight", "lm_head.weight"))]
        before = [tensor.detach().clone() for tensor in ends]
        model.merge_adapter()
        assert all(map(torch.equal, before, ends))  # the end without the adapter stays
