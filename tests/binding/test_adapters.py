"""LoRA by peft on either end of a tie: it belongs to the use that it was put on, and is never merged in silence."""

import copy
import pickle
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tied

peft = pytest.importorskip("peft", exc_type=ImportError)

PLACES = {"source": "encoder", "target": "decoder"}


class Model(nn.Module):
    def __init__(self, expression: str = "encoder.weight.T") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Linear(6, 4, dtype=torch.float64)
        self.decoder = nn.Linear(4, 6, dtype=torch.float64)
        tied.tie(self, "decoder.weight", expression)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


class LanguageModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(7, 4, dtype=torch.float64)
        self.head = nn.Linear(4, 7, bias=False, dtype=torch.float64)
        tied.tie(self, "head.weight", "embed.weight")

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embed(tokens))


def with_lora(model: nn.Module, *targets: str, **options: object) -> nn.Module:
    return peft.get_peft_model(
        model, peft.LoraConfig(target_modules=list(targets), r=2, init_lora_weights=False, **options)
    )


X = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
TOKENS = torch.tensor([[1, 2], [3, 6]])


@pytest.mark.parametrize("expression", ["encoder.weight.T", "2 * encoder.weight.T"])
def test_an_adapter_belongs_to_the_use_that_it_was_put_on(expression: str) -> None:
    model = with_lora(Model(expression), "encoder")
    layer, decoder = model.base_model.model.encoder, model.base_model.model.decoder
    delta = layer.lora_B.default.weight @ layer.lora_A.default.weight * layer.scaling["default"]
    base = layer.base_layer.weight
    factor = 2 if expression[0] == "2" else 1
    hidden = nn.functional.linear(X, base + delta, layer.base_layer.bias)
    by_hand = hidden @ base * factor + decoder.bias
    torch.testing.assert_close(model(X), by_hand, rtol=1e-12, atol=1e-12)
    assert torch.equal(decoder.weight, base.T * factor)
    with model.disable_adapter():
        assert torch.equal(decoder.weight, base.T * factor)


def test_an_adapters_gradient_is_that_of_its_own_use() -> None:
    model = with_lora(Model(), "encoder")
    model(X).square().sum().backward()
    layer = model.base_model.model.encoder
    a, b = (
        layer.lora_A.default.weight.detach().requires_grad_(),
        layer.lora_B.default.weight.detach().requires_grad_(),
    )
    base = layer.base_layer.weight
    hidden = nn.functional.linear(X, base + b @ a * layer.scaling["default"], layer.base_layer.bias)
    (hidden @ base + model.base_model.model.decoder.bias).square().sum().backward()
    torch.testing.assert_close(layer.lora_A.default.weight.grad, a.grad, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(layer.lora_B.default.weight.grad, b.grad, rtol=1e-10, atol=1e-12)


def test_adapters_on_both_ends_count_once_each() -> None:
    """As on plain sharing, whose layers are the oracle here."""
    plain = LanguageModel()
    tied.untie(plain)
    plain.head.weight = plain.embed.weight
    outputs = []
    for each in (LanguageModel(), plain):
        torch.manual_seed(1)
        outputs.append(with_lora(each, "embed", "head")(TOKENS))
    torch.testing.assert_close(*outputs, rtol=1e-12, atol=1e-12)


def refusal(model: nn.Module) -> str:
    with pytest.raises(tied.WriteError) as error:
        model.merge_and_unload()
    return str(error.value)


ENDS = {"head": ("a tied layer", "Linear"), "embed": ("the source of a tie", "Embedding")}


@pytest.mark.parametrize("copied", ["not", "deepcopy", "pickle"])
@pytest.mark.parametrize("end", ENDS)
def test_an_adapter_on_either_end_is_not_merged(end: str, copied: str) -> None:
    model = with_lora(LanguageModel(), end)
    what, kind = ENDS[end]
    if copied == "deepcopy":
        model = copy.deepcopy(model)
    if copied == "pickle":
        model = pickle.loads(pickle.dumps(model))
    expected = model(TOKENS)
    inner = model.base_model.model
    table = (inner.embed.base_layer if end == "embed" else inner.embed).weight
    before = table.detach().clone()
    assert refusal(model) == (
        f"An adapter around {what} cannot be merged: the change of one use would reach all of them.\n"
        f"  found:    {kind}.merge() where weight = embed.weight\n"
        "  expected: a layer with a weight of its own\n"
        "  fix:      tied.untie(model, target) first, which leaves each end a weight of its own\n"
        "Adapters of layers before this one may be merged by now; their unmerge() takes that back."
    )
    assert torch.equal(table, before)
    tied.untie(model)
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(TOKENS), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal((merged.head if end == "embed" else merged.embed).weight, before)


def test_a_tie_declared_under_an_adapter_is_guarded_too() -> None:
    plain = LanguageModel()
    tied.untie(plain)
    model = with_lora(plain, "head")
    tied.tie(model, "base_model.model.head.base_layer.weight", "base_model.model.embed.weight")
    assert "cannot be merged" in refusal(model)


def test_a_tied_layer_that_knows_no_model_is_guarded_too() -> None:
    model = nn.Sequential(nn.Linear(6, 4))
    model.append(tied.nn.TiedLinear(model[0]))
    assert "cannot be merged" in refusal(with_lora(model, "1"))


CONFIGS = {
    "dora": lambda: peft.LoraConfig(target_modules=["encoder"], r=2, init_lora_weights=False, use_dora=True),
    "bias": lambda: peft.LoraConfig(target_modules=["encoder"], r=2, init_lora_weights=False, lora_bias=True),
    "ia3": lambda: peft.IA3Config(target_modules=["encoder"], feedforward_modules=[]),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_so_does_every_other_kind_of_adapter(kind: str) -> None:
    plain = Model()
    plain.other = nn.Linear(4, 4, dtype=torch.float64)
    tied.tie(plain, "other.bias", "encoder.bias")
    peft.get_peft_model(plain, CONFIGS[kind]())
    base = plain.encoder.base_layer
    assert torch.equal(plain.decoder.weight, base.weight.T)
    assert plain.other.bias is base.bias
    assert [str(tie) for tie in tied.ties(plain)] == [
        "decoder.weight = encoder.base_layer.weight.T",
        "other.bias = encoder.base_layer.bias",
    ]


def test_a_layer_put_in_the_sources_place_is_guarded_once_it_is_read() -> None:
    model = LanguageModel()
    model.embed = nn.Embedding(7, 4, dtype=torch.float64)
    assert model.head.weight is model.embed.weight
    assert "cannot be merged" in refusal(with_lora(model, "embed"))


class Merging(nn.Module):
    """A container with a method of its own that is called `merge`."""

    def merge(self) -> str:
        return "mine"


def test_only_adapters_are_guarded() -> None:
    container = Merging()
    container.part = Model().decoder
    assert container.merge() == "mine"


ELSEWHERE = """
import pickle, sys
from peft import LoraConfig, get_peft_model
model = pickle.load(open(sys.argv[1], "rb"))
adapted = get_peft_model(model, LoraConfig(target_modules=["head"], r=2))
try:
    adapted.merge_and_unload()
except Exception as error:
    print(type(error).__name__)
"""


def test_a_pickled_model_is_guarded_in_another_process(tmp_path: Path) -> None:
    encoder = nn.Linear(6, 4)
    model = nn.Sequential(OrderedDict(encoder=encoder, head=tied.nn.TiedLinear(encoder)))
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(model))
    command = [sys.executable, "-W", "ignore", "-c", ELSEWHERE, str(tmp_path / "model.pkl")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said == "WriteError\n"
