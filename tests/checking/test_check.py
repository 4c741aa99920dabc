"""`tied.check` of a live model: states, findings, counts; each finding with a model beside it that must not have it."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from snapshot import refused, snapshot
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import SGD, AdamW

import tied
from tied.checking.semantics import first_loss
from tied.reporting.rules import RULES


class Autoencoder(nn.Module):
    def __init__(self, wide: int = 24, narrow: int = 8) -> None:
        super().__init__()
        self.encoder = nn.Linear(wide, narrow)
        self.decoder = nn.Linear(narrow, wide)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x).relu())


class LanguageModel(nn.Module):
    def __init__(self, words: int = 60, width: int = 16, **options: object) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width, **options)
        self.head = nn.Linear(width, words, bias=False)
        nn.init.normal_(self.embed.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embed(tokens))


def tied_lm(**options: object) -> LanguageModel:
    model = LanguageModel(**options)
    model.head.weight = model.embed.weight
    return model


def codes(model: nn.Module, *args: object, **kwargs: object) -> list[str]:
    return [finding.code for finding in tied.check(model, *args, **kwargs).findings]


def states(model: nn.Module, *args: object) -> list[tuple[str, tuple[str, ...]]]:
    return [(group.state, group.names) for group in tied.check(model, *args).groups]


# -- states -------------------------------------------------------------------------------------------


def test_a_plain_model_is_clean():
    report = tied.check(Autoencoder())
    assert (report.groups, report.findings, report.ok, report.bytes_saved) == ((), (), True, 0)
    assert report.parameters == sum(p.numel() for p in Autoencoder().parameters())
    assert report.bytes == 4 * report.parameters


def test_tied():
    report = tied.check(tied_lm())
    assert [(g.state, g.names) for g in report.groups] == [("tied", ("embed.weight", "head.weight"))]
    assert (report.ok, report.parameters, report.bytes_saved) == (True, 960, 3840)


def test_declared_by_tied():
    model = Autoencoder()
    tied.tie(model, "decoder.weight", "encoder.weight.T")
    report = tied.check(model)
    assert report.ok
    assert report.groups[0].transforms == ("identity", ".T")
    assert report.bytes_saved == 24 * 8 * 4
    assert report.parameters == 24 * 8 + 24 + 8


@pytest.mark.parametrize(
    "cut",
    [
        lambda w: Parameter(w.t()),
        lambda w: Parameter(w.data.t()),
        lambda w: Parameter(w.detach().t()[:, :]),
    ],
)
def test_half_tied(cut):
    model = Autoencoder()
    model.decoder.weight = cut(model.encoder.weight)
    report = tied.check(model)
    assert [(g.state, g.transforms) for g in report.groups] == [("half-tied", ("identity", ".T"))]
    assert [f.code for f in report.findings] == ["TIE101"]
    assert not report.ok
    assert report.parameters == 24 * 8 + 24 + 8


def test_half_tied_by_data():
    model = Autoencoder()
    model.decoder.weight.data = model.encoder.weight.data.t()
    assert codes(model) == ["TIE101"]


def test_half_tied_by_assigning_a_state_dict():
    model = tied_lm()
    model.load_state_dict(model.state_dict(), assign=True)
    assert codes(model) == ["TIE101"]


def test_the_fix_of_half_tied_works():
    model = Autoencoder()
    model.decoder.weight = Parameter(model.encoder.weight.t())
    (finding,) = tied.check(model).findings
    exec(finding.fix, {"tied": tied, "model": model})
    assert tied.check(model).findings == ()
    assert states(model) == [("tied", ("encoder.weight", "decoder.weight"))]


def test_an_odd_overlap_is_given_memory_of_its_own():
    buffer = torch.randn(30)
    model = nn.ParameterDict({"a": Parameter(buffer[:20]), "b": Parameter(buffer[10:])})
    (finding,) = tied.check(model).findings
    exec(finding.fix, {"model": model})
    assert tied.check(model).findings == ()


def test_buffers_over_one_memory():
    model = nn.Module()
    table = torch.randn(6, 6)
    model.register_buffer("one", table)
    model.register_buffer("two", table[:])
    report = tied.check(model)
    assert [(f.code, f.severity) for f in report.findings] == [("TIE110", "note")]
    model.weight = Parameter(table)
    assert [(f.code, f.severity) for f in tied.check(model).findings] == [("TIE110", "warning")]


def test_shared_modules_are_one_line():
    layer = nn.TransformerEncoderLayer(8, 2, 16)
    report = tied.check(nn.Sequential(layer, layer))
    assert [(g.state, g.names) for g in report.groups] == [("tied", ("0", "1"))]


# -- equal copies -------------------------------------------------------------------------------------


def trained(*shape: int) -> Parameter:
    return Parameter(torch.randn(*shape))


@pytest.mark.parametrize(
    ("make", "expression"),
    [
        (lambda w: w.clone(), "a"),
        (lambda w: w.t().clone(), "a.T"),
        (lambda w: w[4:9].clone(), "a[4:9]"),
        (lambda w: w[:7].clone(), "a[:7]"),
        (lambda w: w[7:].clone(), "a[7:]"),
        (lambda w: 3 * w, "3 * a"),
        (lambda w: -w.t() / 8, "-0.125 * a.T"),
    ],
)
def test_equal_copies(make, expression):
    model = nn.ParameterDict({"a": trained(12, 10)})
    model["b"] = Parameter(make(model["a"].detach()))
    report = tied.check(model)
    assert [(g.state, g.names) for g in report.groups] == [("equal", ("a", "b"))]
    (finding,) = report.findings
    assert (finding.code, finding.severity) == ("TIE105", "note")
    assert finding.fix == f'tied.tie(model, "b", "{expression}")'
    assert report.ok
    expected = tied.parse(expression).value({("a",): model["a"].detach()})
    torch.testing.assert_close(model["b"].detach(), expected)
    exec(finding.fix, {"tied": tied, "model": model})
    assert states(model) == [("tied", ("a", "b"))]


def test_parts_of_a_fused_weight():
    model = nn.ParameterDict({"qkv": trained(12, 4)})
    for number, name in enumerate("qkv"):
        model[name] = Parameter(model["qkv"].detach()[4 * number : 4 * number + 4].clone())
    (group,) = tied.check(model).groups
    assert group.names == ("qkv", "q", "k", "v")
    assert group.transforms == ("identity", "[:4]", "[4:8]", "[8:]")


PATTERNS = {
    "ones": torch.ones(6, 6),
    "zeros": torch.zeros(50),
    "identity": torch.eye(8),
    "mask": torch.tril(torch.ones(6, 6)),
    "ramp": torch.arange(40.0),
    "falling-ramp": torch.linspace(4, -4, 40),
    "same-rows": torch.arange(8.0).log1p().expand(6, 8).contiguous(),
    "same-columns": torch.randn(8).unsqueeze(1).expand(8, 6).contiguous(),
    "sines": torch.cat([torch.sin(torch.outer(torch.arange(9.0), torch.rand(4))) for _ in range(1)], 1),
    "tiny": torch.tensor([0.3, -0.2, 0.7]),
}
ANGLES = torch.outer(torch.arange(9.0), torch.rand(4))
PATTERNS["sines"] = torch.cat([ANGLES.sin(), ANGLES.cos()], 1)
PATTERNS["padded-sines"] = torch.cat([torch.zeros(1, 8), PATTERNS["sines"]])


@pytest.mark.parametrize("name", PATTERNS)
def test_equal_constants_and_patterns_are_no_news(name):
    pattern = PATTERNS[name]
    model = nn.ParameterDict({n: Parameter(pattern.clone()) for n in "ab"})
    assert tied.check(model).groups == ()
    model["c"] = Parameter(2 * pattern)
    assert tied.check(model).groups == ()


def test_a_few_numbers_that_are_proportional_are_no_news():
    few, many = trained(5, 5), trained(8, 8)
    model = nn.ParameterDict({"a": few, "b": Parameter(3 * few.detach())})
    assert tied.check(model).groups == ()
    model = nn.ParameterDict({"a": many, "b": Parameter(3 * many.detach())})
    assert states(model) == [("equal", ("a", "b"))]


def test_rows_of_constants_are_no_news():
    model = nn.ParameterDict({"a": Parameter(torch.ones(12, 6)), "b": Parameter(torch.ones(5, 6))})
    assert tied.check(model).groups == ()
    model["a"].data[2:7], model["b"].data = torch.randn(6), model["b"].data * 0
    model["b"].data += model["a"].data[2]
    assert tied.check(model).groups == ()


def test_a_copy_of_what_is_shared():
    model = nn.ParameterDict({"a": trained(8, 8)})
    model["b"], model["c"] = model["a"], Parameter(model["a"].detach().clone())
    assert states(model) == [("tied", ("a", "b")), ("equal", ("a", "c"))]
    model["b"] = Parameter(model["a"].detach())
    assert states(model) == [("half-tied", ("a", "b")), ("equal", ("a", "c"))]


def test_fresh_layers_are_no_news():
    layers = [
        nn.Linear(8, 8),
        nn.LayerNorm(8),
        nn.BatchNorm1d(8),
        nn.Embedding(9, 8),
        nn.LSTM(8, 8),
        nn.Conv2d(3, 3, 3),
    ]
    model = nn.ModuleList([copy.deepcopy(type(layer).__call__ and layer) for layer in layers])
    for layer in model:
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    assert tied.check(nn.ModuleList([*layers, *model])).groups == ()


def test_clones_that_were_never_trained_are_no_news():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 3)
    assert tied.check(model).groups == ()
    with torch.no_grad():  # as after training, and then copied
        for parameter in model.layers[0].parameters():
            parameter.add_(torch.randn_like(parameter))
    model.layers[2] = copy.deepcopy(model.layers[0])
    assert states(model) == [("equal", ("layers.0", "layers.2"))]


def test_tables_that_nobody_trains_are_no_news():
    model = nn.ModuleDict({"body": nn.Linear(8, 8), "a": nn.Embedding(9, 8), "b": nn.Embedding(9, 8)})
    model.b.load_state_dict(model.a.state_dict())
    model.a.requires_grad_(False)
    assert states(model) == [("equal", ("a.weight", "b.weight"))]
    model.b.requires_grad_(False)
    assert states(model) == []
    model.requires_grad_(False)
    assert states(model) == [("equal", ("a.weight", "b.weight"))]


def test_what_has_drifted_is_no_copy():
    weight = torch.randn(20, 20)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        near = (weight + 1e-3 * torch.randn(20, 20)).to(dtype)
        model = nn.ParameterDict({"a": Parameter(weight.to(dtype)), "b": Parameter(near)})
        assert tied.check(model).groups == ()
        barely = (weight + 1e-5 * torch.randn(20, 20)).to(torch.bfloat16)
        assert not torch.equal(barely, weight.bfloat16())
        assert tied.check(nn.ParameterDict({"a": Parameter(weight.bfloat16()), "b": Parameter(barely)})).groups == ()
        almost = weight.to(dtype).clone()
        almost[7, 3] += 1
        assert tied.check(nn.ParameterDict({"a": Parameter(weight.to(dtype)), "b": Parameter(almost)})).groups == ()
        assert tied.check(nn.ParameterDict({"a": Parameter(weight.to(dtype)), "b": Parameter(2 * almost)})).groups == ()


def test_non_finite_values_do_not_stop_the_look():
    broken = torch.randn(8, 8)
    broken[0, 0] = torch.nan
    model = nn.ParameterDict({"a": Parameter(broken), "b": Parameter(broken.clone()), "c": trained(8, 8)})
    model["d"] = Parameter(torch.full((8, 8), torch.inf))
    assert tied.check(model).groups == ()


# -- ties of `tied` that were cut ----------------------------------------------------------------------


def test_a_cut_tie_is_an_error():
    model = Autoencoder()
    tied.tie(model, "decoder.weight", "encoder.weight.T")
    model.decoder = nn.Linear(8, 24)
    report = tied.check(model)
    assert [(f.code, f.names) for f in report.findings] == [("TIE109", ("encoder.weight", "decoder.weight"))]
    tied.retie(model, keep="source")
    assert tied.check(model).findings == ()


def test_a_target_overwritten_behind_its_back_is_an_error():
    model = Autoencoder()
    tied.tie(model, "decoder.weight", "encoder.weight.T")
    model.decoder._parameters["weight"] = trained(24, 8)
    assert codes(model) == ["TIE109"]


def test_the_source_put_in_the_place_of_the_target_is_no_cut():
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    tied.tie(model, "b", "a")
    model["b"] = model["a"]
    assert codes(model) == []


# -- calls --------------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout())
        self.out = nn.Linear(8, 2)
        self.act = nn.ReLU()

    def forward(self, x: Tensor, times: int = 3) -> Tensor:
        for _ in range(times):
            x = self.act(self.layer(x))
        return self.out(x)


def test_called():
    model = Recurrent()
    before, random = snapshot(model), torch.get_rng_state()
    report = tied.check(model, torch.randn(4, 8))
    assert [(g.state, g.names, g.transforms) for g in report.groups] == [("called", ("layer",), ("3 calls",))]
    assert report.ok
    assert snapshot(model) == before
    torch.set_rng_state(random)
    assert tied.check(model, {"x": torch.randn(4, 8), "times": 1}).groups == ()
    assert tied.check(model, (torch.randn(4, 8), 2)).groups[0].transforms == ("2 calls",)


def test_a_layer_that_stands_as_often_as_it_is_called_is_tied():
    layer = nn.Linear(8, 8)
    assert states(nn.Sequential(layer, nn.ReLU(), layer), torch.randn(2, 8)) == [("tied", ("0", "2"))]


def test_looking_draws_no_random_numbers_and_moves_no_statistics():
    model, x = Recurrent().train(), torch.randn(4, 8)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(3)
    tied.check(model, x)
    assert torch.equal(torch.rand(2), torch.rand(2, generator=torch.Generator().manual_seed(3)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_an_embedding_with_max_norm_is_not_rescaled_by_the_look():
    model = LanguageModel(max_norm=0.01)
    before = model.embed.weight.detach().clone()
    tied.check(model, torch.tensor([[1, 2, 3]]))
    assert torch.equal(model.embed.weight, before)


def test_a_forward_that_fails_is_said():
    report = tied.check(Recurrent(), torch.randn(4, 5))
    (note,) = report.notes
    assert note.startswith("The forward was not looked at: it failed with RuntimeError")
    assert report.ok


# -- refusals and choosing ------------------------------------------------------------------------------


def test_what_is_no_subject_is_refused():
    with pytest.raises(tied.TieError) as caught:
        tied.check(3)
    assert str(caught.value) == (
        "check(int)\n"
        "  Only models, state dicts and files can be looked at.\n"
        "  found:    int\n"
        "  expected: an nn.Module, a dict of tensors, or a path\n"
        "  fix:      tied.check(model), or tied.check('model.safetensors')\n"
        "The model was not changed."
    )


def test_codes_are_chosen_by_their_beginning():
    model = Autoencoder()
    model.decoder.weight = Parameter(model.encoder.weight.t())
    assert codes(model, select=["TIE1"]) == ["TIE101"]
    assert codes(model, select=["tie101"]) == ["TIE101"]
    assert codes(model, select=["TIE2", "TIE4"]) == []
    assert codes(model, ignore=["TIE10"]) == []
    assert codes(model, select=["TIE"], ignore=["TIE2"]) == ["TIE101"]
    assert tied.check(model, ignore=["TIE101"]).ok
    with pytest.raises(tied.TieError, match=r"No rule begins with 'tie1o1'[^$]*\nNothing was looked at\.$"):
        tied.check(model, ignore=["tie1o1"])
    for wrong in ({"select": ["TIE9"]}, {"ignore": ["TIE1011"]}, {"ignore": [""]}, {"ignore": ["E"]}):
        with refused(model, tied.TieError):
            tied.check(model, **wrong)


def test_looking_changes_nothing():
    models = [Autoencoder(), tied_lm(), Recurrent()]
    tied.tie(models[0], "decoder.weight", "2 * encoder.weight.T")
    for model in models:
        before = snapshot(model)
        tied.check(model, optimizer=AdamW(model.parameters()))
        assert snapshot(model) == before


def test_a_report_is_plain_data():
    model = Autoencoder()
    model.decoder.weight = Parameter(model.encoder.weight.t())
    data = json.loads(json.dumps(tied.check(model).to_json()))
    assert data["schema_version"] == 1
    assert (data["ok"], data["parameters"], data["subject"]) == (False, 224, "Autoencoder")
    assert data["groups"][0] == {
        "state": "half-tied",
        "names": ["encoder.weight", "decoder.weight"],
        "transforms": ["identity", ".T"],
        "shape": [8, 24],
        "dtype": "float32",
        "bytes": 768,
    }
    assert set(data["findings"][0]) == {"code", "severity", "names", "message", "fix"}


def test_meta_models_are_looked_at():
    with torch.device("meta"):
        model = tied_lm()
        other = Autoencoder()
    assert states(model) == [("tied", ("embed.weight", "head.weight"))]
    assert states(other) == []
    other.decoder.weight = Parameter(other.encoder.weight.t())
    assert codes(other) == ["TIE101"]


# -- meaning ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "code"), [({"padding_idx": 0}, "TIE201"), ({"max_norm": 1.0}, "TIE202"), ({"sparse": True}, "TIE203")]
)
def test_what_an_embedding_asks_for_and_a_head_does_not(options, code):
    assert codes(tied_lm(**options)) == [code]
    assert codes(LanguageModel(**options)) == []
    both = nn.ModuleDict({"a": nn.Embedding(9, 4, **options), "b": nn.Embedding(9, 4, **options)})
    both.b.weight = both.a.weight
    assert codes(both) == []
    declared = LanguageModel(**options)
    tied.tie(declared, "head.weight", "embed.weight")
    assert codes(declared) == [code]


@pytest.mark.parametrize("options", [{"padding_idx": 0}, {"max_norm": 1.0}, {"sparse": True}])
def test_their_fixes_work(options):
    model = tied_lm(**options)
    (finding,) = tied.check(model).findings
    exec(finding.fix, {"model": model, "torch": torch})
    if "padding_idx" in options:
        model(torch.tensor([[1, 2]])).square().sum().backward()
        assert not model.embed.weight.grad[0].any()
        assert model.embed.weight.grad[1].any()
    else:
        assert codes(model) == []


def test_a_frozen_padding_row_needs_no_word():
    model = tied_lm(padding_idx=0).requires_grad_(False)
    assert codes(model) == []


def test_a_wide_embedding_as_a_head():
    model = LanguageModel(words=500, width=64)
    nn.init.normal_(model.embed.weight)
    assert codes(model) == []
    model.head.weight = model.embed.weight
    (finding,) = tied.check(model).findings
    assert finding.code == "TIE204"
    loss = torch.nn.functional.cross_entropy(
        torch.randn(2000, 64) @ model.embed.weight.T.detach(), torch.randint(500, (2000,))
    )
    said = float(finding.message.split("first loss is ")[1].split(",")[0])
    assert said == pytest.approx(float(loss), rel=0.15)
    exec(finding.fix, {"torch": torch, "model": model})
    assert codes(model) == []


@pytest.mark.parametrize("words", [500, 20_000])
def test_the_first_loss_is_that_of_plain_torch(words):
    weight = torch.randn(words, 32, dtype=torch.float64)
    loss = torch.nn.functional.cross_entropy(torch.randn(1000, 32).double() @ weight.T, torch.randint(words, (1000,)))
    assert first_loss(weight) == pytest.approx(float(loss), rel=0.15)


def test_heads_that_are_not_too_wide():
    model = LanguageModel(words=300, width=2)
    nn.init.normal_(model.embed.weight)
    model.head.weight = model.embed.weight
    assert codes(model) == []  # wide, but of few features
    model = LanguageModel(words=500, width=64)
    nn.init.normal_(model.embed.weight, std=0.5)
    model.head.weight = model.embed.weight
    assert codes(model) == []  # chosen by someone: not as an embedding is drawn
    nn.init.normal_(model.embed.weight)
    assert codes(model) == ["TIE204"]
    model.config = SimpleNamespace(tie_word_embeddings=True)
    model._tied_weights_keys = {"head.weight": "embed.weight"}
    assert codes(model) == []  # a model of transformers may scale its features


def test_shared_batch_statistics():
    model = nn.ModuleDict({"a": nn.BatchNorm1d(4), "b": nn.BatchNorm1d(4)})
    model["b"] = model["a"]
    assert codes(model) == ["TIE205"]
    apart = nn.ModuleDict({"a": nn.BatchNorm1d(4), "b": nn.BatchNorm1d(4)})
    apart.b.weight, apart.b.bias = apart.a.weight, apart.a.bias
    assert codes(apart) == []
    without = nn.BatchNorm1d(4, track_running_stats=False)
    assert codes(nn.ModuleDict({"a": without, "b": without})) == []


def test_one_end_trained_and_one_frozen():
    model = Autoencoder()
    model.decoder.weight = Parameter(model.encoder.weight.t(), requires_grad=False)
    assert codes(model) == ["TIE101", "TIE206"]


def test_rows_that_stay_equal():
    model = nn.ModuleDict({"layer": nn.Linear(6, 4, bias=False)})
    model.row = Parameter(torch.randn(6))
    tied.tie(model, "layer.weight", "row.expand(4, 6)")
    assert codes(model) == ["TIE207"]
    model = nn.ModuleDict({"layer": nn.Linear(6, 4)})
    model.row = Parameter(torch.randn(6))
    tied.tie(model, "layer.weight", "row.expand(4, 6)")
    assert codes(model) == []  # the bias tells the units apart
    nn.init.zeros_(model.layer.bias)
    (finding,) = tied.check(model).findings
    assert finding.code == "TIE207"
    exec(finding.fix, {"torch": torch, "model": model})
    assert codes(model) == []


def test_rows_that_are_repeated_stay_equal_and_zeros_do_not():
    model = nn.ModuleDict({"layer": nn.Linear(6, 4, bias=False)})
    model.row = Parameter(torch.randn(1, 6))
    tied.tie(model, "layer.weight", "row.repeat(4, 1)")
    assert codes(model) == ["TIE207"]
    model = nn.ModuleDict({"layer": nn.Linear(6, 4, bias=False)})
    model.layer.weight = Parameter(torch.zeros(6, 4).t())
    assert codes(model) == []


def test_columns_that_are_equal_are_meant():
    model = nn.ModuleDict({"layer": nn.Linear(6, 4, bias=False)})
    model.column = Parameter(torch.randn(4, 1))
    tied.tie(model, "layer.weight", "column.expand(4, 6)")
    assert codes(model) == []


# -- optimizers -----------------------------------------------------------------------------------------


def optimizer_codes(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    return [c for c in codes(model, optimizer=optimizer) if c.startswith("TIE4")]


def half_tied() -> Autoencoder:
    model = Autoencoder()
    model.decoder.weight = Parameter(model.encoder.weight.t())
    return model


def test_a_good_optimizer():
    for model in (Autoencoder(), tied_lm()):
        assert optimizer_codes(model, AdamW(model.parameters())) == []
    declared = Autoencoder()
    tied.tie(declared, "decoder.weight", "encoder.weight.T")
    assert optimizer_codes(declared, AdamW(declared.parameters())) == []


def test_one_parameter_twice():
    model = tied_lm()
    with pytest.warns(UserWarning, match="duplicate parameters"):
        optimizer = SGD([model.embed.weight, model.head.weight], lr=0.1)
    assert optimizer_codes(model, optimizer) == ["TIE401"]


def test_one_memory_in_two_entries():
    model = half_tied()
    assert optimizer_codes(model, AdamW(model.parameters())) == ["TIE402"]
    assert optimizer_codes(model, AdamW(model.encoder.parameters())) == []


def test_one_memory_with_two_settings():
    model = half_tied()
    groups = [
        {"params": model.encoder.parameters(), "weight_decay": 0.1},
        {"params": model.decoder.parameters(), "weight_decay": 0.0},
    ]
    report = tied.check(model, optimizer=AdamW(groups, lr=0.01))
    (finding,) = [f for f in report.findings if f.code == "TIE403"]
    assert "lr=0.01, weight_decay=0.1 and lr=0.01, weight_decay=0" in finding.message
    assert "TIE402" not in {f.code for f in report.findings}


def test_a_shared_parameter_that_is_missing():
    model = nn.ModuleDict({"lm": tied_lm(), "extra": nn.Linear(4, 4)})
    assert optimizer_codes(model, AdamW(model.extra.parameters())) == ["TIE404"]
    model.lm.requires_grad_(False)
    assert optimizer_codes(model, AdamW(model.extra.parameters())) == []
    other = nn.Linear(3, 3)
    assert optimizer_codes(tied_lm(), AdamW(other.parameters())) == []
    assert optimizer_codes(tied_lm(), AdamW(LanguageModel().parameters())) == []  # of a twin, say an average
    assert optimizer_codes(model, SGD([*tied_lm().parameters(), nn.LazyLinear(3).weight], lr=0.1)) == []


def test_a_late_tie_leaves_a_stale_parameter():
    model = Autoencoder()
    optimizer = AdamW(model.parameters())
    tied.tie(model, "decoder.weight", "encoder.weight.T")
    assert optimizer_codes(model, optimizer) == ["TIE405"]
    model = LanguageModel()
    optimizer = AdamW(model.parameters())
    model.head.weight = model.embed.weight
    assert optimizer_codes(model, optimizer) == ["TIE405"]


def test_an_optimizer_of_two_models_is_fine():
    model, critic = tied_lm(), nn.Linear(5, 7)
    assert optimizer_codes(model, AdamW([*model.parameters(), *critic.parameters()])) == []
    with pytest.warns(UserWarning, match="duplicate"):
        twice = SGD([*model.parameters(), critic.weight, critic.weight], lr=0.1)
    assert optimizer_codes(model, twice) == []


# -- the registry -----------------------------------------------------------------------------------------


def test_rules_are_told_apart():
    assert len({rule.title for rule in RULES.values()}) == len(RULES)
    assert len({rule.section for rule in RULES.values()}) == len(RULES)
    assert list(RULES) == sorted(RULES)
    assert all(rule.sentence.endswith(".") and rule.severity in ("error", "warning", "note") for rule in RULES.values())


def test_every_rule_has_a_section_with_an_example():
    page = (Path(__file__).parents[2] / "docs" / "rules.md").read_text(encoding="utf-8")
    sections = {part.split("\n")[0]: part for part in page.split("\n### ")[1:]}
    for rule in RULES.values():
        text = sections[f"{rule.code} {rule.title}"]
        assert f"*{rule.severity.capitalize()}" in text, rule.code
        assert f'"{rule.code}"' in text, rule.code


def test_a_name_cannot_leave_its_quotes_in_a_fix():
    name = 'x"); raise SystemExit(1); ("'
    model = nn.ParameterDict({"a": trained(8, 8)})
    model[name] = Parameter(model["a"].detach().clone())
    (finding,) = tied.check(model).findings
    calls = []
    exec(finding.fix, {"tied": SimpleNamespace(tie=lambda *arguments: calls.append(arguments)), "model": model})
    assert calls == [(model, name, "a")]


@pytest.mark.filterwarnings("ignore")
def test_scripted_models_are_looked_at():
    scripted = torch.jit.script(tied_lm())
    assert states(scripted) == [("tied", ("embed.weight", "head.weight"))]
    assert tied.check(scripted).parameters == 960


def test_parametrized_and_pruned_models_are_clean():
    layer = torch.nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
    torch.nn.utils.prune.l1_unstructured(layer, "bias", 0.5)
    assert tied.check(layer).findings == ()
    assert tied.check(layer).groups == ()
