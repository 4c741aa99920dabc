"""Every architecture of transformers that declares ties, made small by one rule, without knowing any of them.

Sizes of a configuration are replaced by small ones, by name, in nested configurations too. That suits most classes;
those that cannot be built so are named with the reason, and left out.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import nn

SMALL = {
    ("vocab_size", "src_vocab_size", "tgt_vocab_size", "entity_vocab_size", "text_vocab_size"): 99,
    (
        "hidden_size",
        "d_model",
        "n_embd",
        "dim",
        "embed_dim",
        "embedding_size",
        "emb_dim",
        "width",
        "entity_emb_size",
    ): 32,
    ("word_embed_proj_dim", "hidden_dim", "d_embed", "encoder_hidden_size", "cross_attention_hidden_size"): 32,
    ("projection_dim", "text_hidden_size", "decoder_hidden_size", "lm_hidden_size", "output_dim", "bottleneck_dim"): 32,
    ("intermediate_size", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff", "n_inner", "d_inner", "dff"): 48,
    ("moe_intermediate_size", "shared_expert_intermediate_size", "mlp_dim", "dim_feedforward", "ffn_hidden_size"): 48,
    ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers", "depth"): 2,
    ("num_decoder_layers", "num_encoder_layers", "encoder_num_hidden_layers", "decoder_num_hidden_layers"): 2,
    ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads", "attention_heads"): 4,
    ("decoder_attention_heads", "num_encoder_attention_heads", "num_decoder_attention_heads"): 4,
    ("encoder_num_attention_heads", "decoder_num_attention_heads", "num_attention_head"): 4,
    ("num_key_value_heads", "num_kv_heads", "encoder_num_key_value_heads", "decoder_num_key_value_heads"): 2,
    ("head_dim", "d_kv", "d_head", "attention_head_dim", "global_head_dim"): 8,
    ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_source_positions"): 64,
    ("max_target_positions", "max_sequence_length", "max_encoder_position_embeddings"): 64,
    ("max_decoder_position_embeddings",): 64,
    ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts"): 4,
    ("num_experts_per_tok", "moe_topk", "top_k", "moe_k"): 2,
    ("image_size",): 32,
    ("patch_size",): 8,
    ("num_queries", "num_query_tokens"): 5,
}
SIZES = {name: size for names, size in SMALL.items() for name in names}


def declaring_classes() -> Iterator[type[nn.Module]]:
    """Yield the classes of transformers with a configuration of their own that declare ties."""
    for name in sorted(dir(transformers)):
        if name.startswith("_") or not name[0].isupper() or name.startswith(("TF", "Flax", "Auto")):
            continue
        try:
            found = getattr(transformers, name)
        except Exception:
            continue
        is_model = isinstance(found, type) and issubclass(found, nn.Module) and hasattr(found, "config_class")
        if is_model and getattr(found, "_tied_weights_keys", None) and found.config_class is not None:
            yield found


def build(made: type[nn.Module], seconds: int = 20, **changes: Any) -> nn.Module:
    """Return a tiny model of a class, as transformers makes and ties it.

    Raises:
        Exception: what transformers raises where the sizes do not fit together; TimeoutError when it takes long.
    """
    torch.manual_seed(0)
    with _limit(seconds):
        configuration = made.config_class()
        _shrink(configuration, changes)
        return made(configuration).eval()


def _shrink(configuration: Any, changes: dict[str, Any]) -> None:
    for value in list(vars(configuration).values()):
        if isinstance(value, transformers.PretrainedConfig):
            _shrink(value, changes)
    known = {**getattr(configuration, "attribute_map", {})}
    for name, size in SIZES.items():
        present = getattr(configuration, known.get(name, name), None)
        if isinstance(present, int) and not isinstance(present, bool) and present > size:
            setattr(configuration, name, size)
    for name, value in list(vars(configuration).items()):
        if name == "layer_types" and isinstance(value, list):
            configuration.layer_types = value[: getattr(configuration, "num_hidden_layers", 2)]
        elif name.endswith("token_id") and isinstance(value, int) and value >= 99:
            setattr(configuration, name, 3)
    for name, value in changes.items():
        setattr(configuration, name, value)


@contextmanager
def _limit(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
