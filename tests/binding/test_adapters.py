"""LoRA by peft on either end of a tie: the source's adapter is followed, the target's is never merged in silence."""

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
def test_an_adapter_on_the_source_is_followed_and_merging_changes_nothing(expression: str) -> None:
    model = with_lora(Model(expression), "encoder")
    layer = model.base_model.model.encoder
    delta = layer.lora_B.default.weight @ layer.lora_A.default.weight * layer.scaling["default"]
    factor = 2 if expression[0] == "2" else 1
    effective = layer.base_layer.weight + delta
    by_hand = nn.functional.linear(X, effective, layer.base_layer.bias) @ effective * factor
    by_hand = by_hand + model.base_model.model.decoder.bias
    torch.testing.assert_close(model(X), by_hand, rtol=1e-12, atol=1e-12)
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(X), by_hand, rtol=1e-12, atol=1e-12)
    assert [str(tie) for tie in tied.ties(merged)] == [f"decoder.weight = {expression}"]


def test_the_adapters_gradient_is_the_sum_over_both_uses() -> None:
    model = with_lora(Model(), "encoder")
    model(X).square().sum().backward()
    layer = model.base_model.model.encoder
    a, b = (
        layer.lora_A.default.weight.detach().requires_grad_(),
        layer.lora_B.default.weight.detach().requires_grad_(),
    )
    effective = layer.base_layer.weight + b @ a * layer.scaling["default"]
    decoded = (
        nn.functional.linear(X, effective, layer.base_layer.bias) @ effective + model.base_model.model.decoder.bias
    )
    decoded.square().sum().backward()
    torch.testing.assert_close(layer.lora_A.default.weight.grad, a.grad, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(layer.lora_B.default.weight.grad, b.grad, rtol=1e-10, atol=1e-12)


def test_a_switched_off_or_merged_adapter_is_followed() -> None:
    plain = Model()
    expected = plain(X)
    model = with_lora(plain, "encoder")
    adapted = model(X)
    with model.disable_adapter():
        torch.testing.assert_close(model(X), expected, rtol=1e-12, atol=1e-12)
    model.merge_adapter()
    torch.testing.assert_close(model(X), adapted, rtol=1e-12, atol=1e-12)
    model.unmerge_adapter()
    torch.testing.assert_close(model(X), adapted, rtol=1e-12, atol=1e-12)


def test_an_adapted_embedding_is_the_head_too() -> None:
    model = with_lora(LanguageModel(), "embed")
    expected = model(TOKENS)
    torch.testing.assert_close(model.merge_and_unload()(TOKENS), expected, rtol=1e-12, atol=1e-12)


def refusal(model: nn.Module) -> str:
    with pytest.raises(tied.WriteError) as error:
        model.merge_and_unload()
    return str(error.value)


@pytest.mark.parametrize("copied", ["not", "deepcopy", "pickle"])
def test_an_adapter_on_the_target_is_not_merged(copied: str) -> None:
    model = with_lora(LanguageModel(), "head")
    if copied == "deepcopy":
        model = copy.deepcopy(model)
    if copied == "pickle":
        model = pickle.loads(pickle.dumps(model))
    expected = model(TOKENS)
    table = model.base_model.model.embed.weight.detach().clone()
    assert refusal(model) == (
        "An adapter around a tied layer cannot be merged: the change would go into the source, for all its uses.\n"
        "  found:    Linear.merge() where weight = embed.weight\n"
        "  expected: a layer with a weight of its own\n"
        "  fix:      tied.untie(model, target) first, which keeps the source as it is; or put the adapter on the "
        "source\n"
        "Adapters of layers before this one may be merged by now; their unmerge() takes that back."
    )
    assert torch.equal(model.base_model.model.embed.weight, table)
    tied.untie(model, "base_model.model.head.base_layer.weight")
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(TOKENS), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(merged.embed.weight, table)


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


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True}], ids=str)
def test_an_adapter_that_does_more_is_refused_where_it_is_read(options: dict[str, bool]) -> None:
    plain = Model()
    if "lora_bias" in options:
        plain.other = nn.Linear(4, 4, dtype=torch.float64)
        tied.tie(plain, "other.bias", "encoder.bias")
    model = with_lora(plain, "encoder", **options)
    name = "bias" if "lora_bias" in options else "weight"
    owner = model.base_model.model.other if name == "bias" else model.base_model.model.decoder
    with pytest.raises(tied.KindError) as error:
        getattr(owner, name)
    assert str(error.value) == (
        f"What this adapter makes of the source's '{name}' is not known, so that no target can follow it.\n"
        "  found:    an active adapter in peft.tuners.lora.layer.Linear\n"
        "  expected: plain LoRA, which adds a change to the weight\n"
        "  fix:      call tied.untie(model, target) first, or put the adapter on a layer that is not tied\n"
        "The model was not changed."
    )


def test_other_adapters_are_refused() -> None:
    plain = Model()
    model = peft.get_peft_model(plain, peft.IA3Config(target_modules=["encoder"], feedforward_modules=[]))
    with pytest.raises(tied.KindError, match="is not known"):
        _ = model.base_model.model.decoder.weight
    with model.disable_adapter():
        assert torch.equal(plain.decoder.weight, plain.encoder.base_layer.weight.T)


def test_a_bias_beside_plain_lora_is_the_base_layers() -> None:
    plain = Model()
    plain.other = nn.Linear(4, 4, dtype=torch.float64)
    tied.tie(plain, "other.bias", "encoder.bias")
    with_lora(plain, "encoder")
    assert torch.equal(plain.other.bias, plain.encoder.base_layer.bias)


def test_an_adapter_of_another_layer_is_none_of_the_sources() -> None:
    model = with_lora(Model(), "encoder")
    model.add_adapter("second", peft.LoraConfig(target_modules=["decoder"], r=1, init_lora_weights=False))
    model.base_model.set_adapter(["default", "second"])
    layer = model.base_model.model.encoder
    delta = layer.lora_B.default.weight @ layer.lora_A.default.weight * layer.scaling["default"]
    effective = layer.base_layer.weight + delta
    target = model.base_model.model.decoder.base_layer.weight
    torch.testing.assert_close(target, effective.T, rtol=1e-12, atol=1e-12)


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
