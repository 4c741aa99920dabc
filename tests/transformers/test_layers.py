"""The layers of `tied.nn` inside models of transformers, compared with what transformers itself has for it."""

import copy

import pytest
import torch
import transformers
from torch import nn

import tied
from tied.nn import EMA, GroupedLinear, Looped, tie_vocabulary

SIZES = {
    "vocab_size": 19,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
}
TOKENS = torch.tensor([[1, 5, 3, 9, 2, 2], [4, 4, 18, 0, 7, 1]])


def llama(layers: int = 2, groups: int = 4, **options) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, num_hidden_layers=layers, num_key_value_heads=groups, **options)
    return transformers.LlamaForCausalLM(config).double().eval()


def loss(model: nn.Module) -> torch.Tensor:
    return model(input_ids=TOKENS, labels=TOKENS).loss


@pytest.mark.parametrize("groups", [1, 2])
def test_grouped_projections_are_llamas_grouped_query_attention(groups):
    model, native = llama(), llama(groups=groups)
    state = native.state_dict()
    for at, layer in enumerate(model.model.layers):
        for name in ("k_proj", "v_proj"):
            projection = GroupedLinear.from_linear(getattr(layer.self_attn, name), heads=4, groups=groups)
            setattr(layer.self_attn, name, projection)
            state[f"model.layers.{at}.self_attn.{name}.group_weight"] = state.pop(
                f"model.layers.{at}.self_attn.{name}.weight"
            )
    model.load_state_dict(state)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in native.parameters())
    for each in (model, native):
        loss(each).backward()
    torch.testing.assert_close(loss(model), loss(native), rtol=0, atol=1e-12)
    for at, layer in enumerate(native.model.layers):
        found = model.model.layers[at].self_attn.k_proj.group_weight.grad
        torch.testing.assert_close(found, layer.self_attn.k_proj.weight.grad, rtol=0, atol=1e-12)


def test_a_looped_decoder_layer_is_a_stack_with_equal_layers():
    looped, plain = llama(layers=1, use_cache=False), llama(layers=3, use_cache=False)
    layer = looped.model.layers[0]
    for other in plain.model.layers:
        other.load_state_dict(layer.state_dict())
    plain.load_state_dict({n: v for n, v in looped.state_dict().items() if ".layers." not in n}, strict=False)
    looped.model.layers = nn.ModuleList([Looped(layer, depth=3, private=["*norm*"])])
    torch.testing.assert_close(loss(looped), loss(plain), rtol=0, atol=1e-12)
    for each in (looped, plain):
        loss(each).backward()
    shared = sum(other.mlp.up_proj.weight.grad for other in plain.model.layers)
    torch.testing.assert_close(layer.mlp.up_proj.weight.grad, shared, rtol=0, atol=1e-12)
    norms = [other.input_layernorm.weight.grad for other in looped.model.layers[0].layers]
    for norm, other in zip(norms, plain.model.layers, strict=True):
        torch.testing.assert_close(norm, other.input_layernorm.weight.grad, rtol=0, atol=1e-12)


def test_three_ways_in_an_encoder_decoder_model():
    torch.manual_seed(0)
    config = transformers.BertConfig(**SIZES, num_hidden_layers=1)
    pair = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(config, copy.deepcopy(config))
    pair.tie_word_embeddings = pair.decoder.tie_word_embeddings = False
    model = transformers.EncoderDecoderModel(config=pair).double().eval()
    untied = len(list(model.parameters()))
    at = {
        "encoder": "encoder.embeddings.word_embeddings",
        "decoder": "decoder.bert.embeddings.word_embeddings",
        "head": "decoder.cls.predictions.decoder",
    }
    made = tie_vocabulary(model, **at)
    assert len(made) == 2
    assert len(list(model.parameters())) == untied - len(made)
    words = model.get_submodule(at["encoder"]).weight
    assert model.get_submodule(at["head"]).weight is words
    output = model(input_ids=TOKENS, decoder_input_ids=TOKENS).logits
    output.logsumexp(-1).mean().backward()
    assert words.grad.abs().sum(-1).gt(0).all()  # the head reaches every word


def test_a_teacher_of_a_model_with_tied_embeddings():
    model = llama(tie_word_embeddings=True)
    teacher = EMA(model, decay=0.5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()
        teacher.update(model)
    inner = teacher.module
    assert inner.lm_head.weight is inner.model.embed_tokens.weight
    assert len(list(teacher.parameters())) == len(list(model.parameters()))
    tied.adopt(model)
    teacher.update(model)
    assert teacher(input_ids=TOKENS).logits.shape == (2, 6, 19)
