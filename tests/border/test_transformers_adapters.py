"""peft on models of transformers that share a vocabulary: an adopted model is what the untouched one is.

Adopted before the adapters were put on, or after. Where merging gets plain sharing wrong, an adopted model refuses.
"""

import tempfile
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from tiny import build
from torch import Tensor, nn

import tied

peft = pytest.importorskip("peft", exc_type=ImportError)

pytestmark = pytest.mark.filterwarnings("ignore")  # peft's, of tied layers, which it does not know to be kept
MODELS = {
    "LlamaForCausalLM": ("embed_tokens", "lm_head"),
    "GPT2LMHeadModel": ("wte", "lm_head"),
    "BertForMaskedLM": ("word_embeddings", "decoder"),
}
Configured = Callable[[str, str], Any]
TOKENS = [1, 5]
CONFIGS: dict[str, Configured] = {
    "LoRA, embedding": lambda e, h: peft.LoraConfig(r=2, target_modules=[e]),
    "LoRA, head": lambda e, h: peft.LoraConfig(r=2, target_modules=[h]),
    "LoRA, both": lambda e, h: peft.LoraConfig(r=2, target_modules=[e, h]),
    "LoRA, embedding, ensured": lambda e, h: peft.LoraConfig(r=2, target_modules=[e], ensure_weight_tying=True),
    "LoRA, head, ensured": lambda e, h: peft.LoraConfig(r=2, target_modules=[h], ensure_weight_tying=True),
    "LoRA, both, ensured": lambda e, h: peft.LoraConfig(r=2, target_modules=[e, h], ensure_weight_tying=True),
    "DoRA, both": lambda e, h: peft.LoraConfig(r=2, target_modules=[e, h], use_dora=True),
    "IA3, head": lambda e, h: peft.IA3Config(target_modules=[h], feedforward_modules=[]),
    "tokens": lambda e, h: peft.TrainableTokensConfig(target_modules=[e], token_indices=TOKENS),
    "LoRA and tokens": lambda e, h: peft.LoraConfig(r=2, target_modules=[h], trainable_token_indices={e: TOKENS}),
    "LoRA and tokens, ensured": lambda e, h: peft.LoraConfig(
        r=2, target_modules="all-linear", trainable_token_indices={e: TOKENS}, ensure_weight_tying=True
    ),
    "saved, embedding": lambda e, h: peft.LoraConfig(r=2, target_modules="all-linear", modules_to_save=[e]),
    "saved, head": lambda e, h: peft.LoraConfig(r=2, target_modules="all-linear", modules_to_save=[h]),
    "saved, both": lambda e, h: peft.LoraConfig(r=2, target_modules="all-linear", modules_to_save=[e, h]),
    "saved, both, ensured": lambda e, h: peft.LoraConfig(
        r=2, target_modules="all-linear", modules_to_save=[e, h], ensure_weight_tying=True
    ),
}
IDS = torch.tensor([[1, 5, 7, 9, 3]])
FAST = {"LoRA, both", "LoRA, both, ensured", "tokens", "LoRA and tokens", "LoRA and tokens, ensured", "saved, both"}


def is_fast(model: str, config: str) -> bool:
    return model == "LlamaForCausalLM" and config in FAST


CASES = [
    pytest.param(model, config, marks=() if is_fast(model, config) else pytest.mark.slow, id=f"{model} {config}")
    for model in MODELS
    for config in CONFIGS
]


def made(name: str) -> nn.Module:
    return build(getattr(transformers, name), tie_word_embeddings=True).double().eval()


def put_on(model: nn.Module, config: Any) -> nn.Module:
    torch.manual_seed(1)
    with_adapter = peft.get_peft_model(model, config).double().eval()
    for name, parameter in with_adapter.named_parameters():
        if "lora_" in name or "ia3" in name:
            values = torch.sin(torch.arange(parameter.numel()).double() + len(name))
            parameter.data.copy_(values.view_as(parameter) / 4)
    return with_adapter


def outputs(model: nn.Module) -> Tensor:
    return model(input_ids=IDS).logits.detach().clone()


def train(model: nn.Module) -> None:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        model(input_ids=IDS).logits.square().mean().backward()
        optimizer.step()


def loaded_elsewhere(model: nn.Module, name: str) -> Tensor:
    """Return what the adapter's file makes of a model that nobody touched."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return outputs(peft.PeftModel.from_pretrained(made(name), folder).double().eval())


def history(name: str, config: str, adopted: str) -> tuple[list[Tensor], nn.Module]:
    """Put an adapter on, train it, save it and load it; return what was computed on the way."""
    model = made(name)
    if adopted == "before":
        tied.adopt(model)
    model = put_on(model, CONFIGS[config](*MODELS[name]))
    if adopted == "after":
        tied.adopt(model)
    found = [torch.tensor(sum(p.numel() for p in model.parameters())), outputs(model)]
    train(model)
    return [*found, outputs(model), loaded_elsewhere(model, name)], model


def is_right(model: nn.Module, expected: Tensor) -> bool:
    return torch.allclose(outputs(model), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("name", "config"), CASES)
def test_an_adopted_model_is_what_the_untouched_one_is(name: str, config: str) -> None:
    expected, plain = history(name, config, "never")
    merged_right = is_right(plain.merge_and_unload(), expected[2])
    for adopted in ("before", "after"):
        found, model = history(name, config, adopted)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)
        if merged_right:
            assert is_right(model.merge_and_unload(), expected[2])
        else:
            with pytest.raises(tied.WriteError, match="cannot be merged"):
                model.merge_and_unload()


@pytest.mark.parametrize("config", ["LoRA, both", "tokens", "saved, both"])
def test_what_is_unloaded_trains_as_one_weight(config: str) -> None:
    name = "LlamaForCausalLM"
    found = []
    for adopted in ("never", "before", "after"):
        bare = history(name, config, adopted)[1].unload().requires_grad_(True)
        train(bare)
        found.append(outputs(bare))
        assert (bare.lm_head.weight is bare.model.embed_tokens.weight) == (config != "saved, both")
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-9, atol=1e-10)
