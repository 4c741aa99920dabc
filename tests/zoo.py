"""Tiny random models of transformers, one for each architecture: real subjects with ties of every kind.

An `Architecture` names a class of transformers and the few sizes that make it tiny. `build` gives the model as
transformers makes it, with the ties that its configuration asks for; `inputs` gives something to run it on.
Nothing is downloaded.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

WORDS, WIDTH = 47, 16  # the last three words are kept for special tokens of models with pictures

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Architecture:
    """One class of transformers, made tiny."""

    model: str
    sizes: dict[str, Any]
    inputs: Callable[[], Inputs]

    def __str__(self) -> str:
        return self.model

    def build(self) -> nn.Module:
        """Return the model, the same one each time, in eval mode, in which nothing is dropped."""
        torch.manual_seed(0)
        made = getattr(transformers, self.model)
        model = made(made.config_class(**self.sizes))
        with torch.no_grad():  # biases start at zero, where a lost tie would not be seen
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        return model.eval()


# -- inputs -------------------------------------------------------------------------------------------


def words(length: int = 7) -> Inputs:
    return {"input_ids": torch.randint(4, WORDS - 5, (2, length))}


def answer() -> Inputs:
    return {"decoder_input_ids": torch.randint(4, WORDS - 5, (2, 5))}


def two_texts() -> Inputs:
    return words() | answer()


def picture(side: int = 16) -> Inputs:
    return {"pixel_values": torch.randn(2, 3, side, side)}


def picture_and_words() -> Inputs:
    return words() | picture()


def waves(length: int) -> Callable[[], Inputs]:
    return lambda: {"input_values": torch.randn(2, length)} | answer()


def spectrum(*shape: int) -> Callable[[], Inputs]:
    return lambda: {"input_features": torch.randn(2, *shape)} | answer()


# -- sizes --------------------------------------------------------------------------------------------

SPECIAL = {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3, "tie_word_embeddings": True}
TEXT = SPECIAL | {  # transformers maps older names (n_embd, d_model) onto these
    "vocab_size": WORDS,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 66,
}
SPARE = {"cls_token_id": 2, "sep_token_id": 3}
GROUPED = {"num_key_value_heads": 1, "head_dim": 8}
STACKS = {
    "d_model": WIDTH,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
}
BART = SPECIAL | STACKS | {"vocab_size": WORDS, "max_position_embeddings": 64, "decoder_start_token_id": 2}
T5 = SPECIAL | {
    "vocab_size": WORDS,
    "d_model": WIDTH,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 2,
    "num_decoder_layers": 1,
    "num_heads": 2,
    "decoder_start_token_id": 1,
}
VISION = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 16,
    "patch_size": 8,
}
RESNET = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 8, 8, 8],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
    "out_features": ["stage2", "stage3", "stage4"],
}
BLIP = {
    "text_config": TEXT | {"encoder_hidden_size": WIDTH, "projection_dim": 8, "sep_token_id": 3},
    "vision_config": VISION,
    "projection_dim": 8,
    "image_text_hidden_size": 8,
}
SSM = {"mamba_d_state": 4}


def text(model: str, **sizes: Any) -> Architecture:
    return Architecture(model, TEXT | sizes, words)


def seq2seq(model: str, **sizes: Any) -> Architecture:
    return Architecture(model, BART | sizes, two_texts)


def t5(model: str, **sizes: Any) -> Architecture:
    return Architecture(model, T5 | sizes, two_texts)


# The head is the embedding.
DECODERS = [
    text("LlamaForCausalLM"),
    text("GPT2LMHeadModel"),
    text("GPT2DoubleHeadsModel"),
    text("GemmaForCausalLM", **GROUPED),
    text("Gemma2ForCausalLM", **GROUPED),
    text("Gemma3ForCausalLM", **GROUPED),
    text("Qwen2ForCausalLM", num_key_value_heads=1),
    text("Qwen3ForCausalLM", **GROUPED),
    text("MistralForCausalLM", num_key_value_heads=1),
    text("MixtralForCausalLM", num_key_value_heads=1, num_local_experts=2),
    text(
        "DeepseekV3ForCausalLM",
        num_key_value_heads=2,
        n_routed_experts=2,
        num_experts_per_tok=1,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        moe_intermediate_size=8,
        q_lora_rank=8,
        kv_lora_rank=8,
        qk_nope_head_dim=4,
        qk_rope_head_dim=4,
        v_head_dim=8,
    ),
    text("GptOssForCausalLM", **GROUPED, num_local_experts=2, num_experts_per_tok=1),
    text("OPTForCausalLM", ffn_dim=24, word_embed_proj_dim=WIDTH),
    text("BloomForCausalLM"),
    text("FalconForCausalLM"),
    text("GPTNeoForCausalLM", attention_types=[[["global", "local"], 1]]),
    text("GPTNeoXForCausalLM"),
    text("GPTJForCausalLM", rotary_dim=4),
    text("CodeGenForCausalLM", hidden_size=32, num_attention_heads=4, rotary_dim=4),
    text("GPTBigCodeForCausalLM"),
    text("MptForCausalLM", max_seq_len=64, expansion_ratio=2),
    text("PhiForCausalLM"),
    text("Phi3ForCausalLM", num_key_value_heads=1),
    text("StableLmForCausalLM", num_key_value_heads=1),
    text("Starcoder2ForCausalLM", num_key_value_heads=1),
    text("OlmoForCausalLM"),
    text("Olmo2ForCausalLM"),
    text("CohereForCausalLM"),
    text("GraniteForCausalLM"),
    text("SmolLM3ForCausalLM", num_key_value_heads=1),
    text("NemotronForCausalLM", num_key_value_heads=1),
    text("XGLMForCausalLM", ffn_dim=24, attention_heads=2),
    text("BioGptForCausalLM"),
    text("CTRLLMHeadModel", dff=24, n_positions=64),
    text("OpenAIGPTLMHeadModel"),
    Architecture(  # declares its tie the other way round: the embedding is the head
        "OpenAIGPTDoubleHeadsModel", TEXT, lambda: {"input_ids": torch.randint(4, WORDS - 5, (2, 2, 7))}
    ),
    Architecture(
        "XLNetLMHeadModel",
        SPECIAL | {"vocab_size": WORDS, "d_model": WIDTH, "n_layer": 2, "n_head": 2, "d_inner": 24},
        words,
    ),
    text("MambaForCausalLM", state_size=4),
    text("Mamba2ForCausalLM", state_size=4, num_heads=4, head_dim=8, n_groups=1, chunk_size=4),
    text("JambaForCausalLM", **SSM, num_key_value_heads=1, attn_layer_period=2, attn_layer_offset=1, num_experts=2),
    text("BertGenerationDecoder", is_decoder=True),
    Architecture("TrOCRForCausalLM", BART, words),
]

# The head is the embedding; often the head's bias is a Parameter of its parent too.
MASKED = [
    text("BertForMaskedLM"),
    text("BertForPreTraining"),
    text("RobertaForMaskedLM"),
    text("DistilBertForMaskedLM", dim=WIDTH, hidden_dim=24),
    text("ElectraForMaskedLM", embedding_size=WIDTH),
    text("DebertaForMaskedLM"),
    text("DebertaV2ForMaskedLM"),
    text("MPNetForMaskedLM"),
    text("CamembertForMaskedLM"),
    text("XLMRobertaForMaskedLM"),
    text("XLMWithLMHeadModel", n_langs=1),
    text("FlaubertWithLMHeadModel", n_langs=1),
    text("BigBirdForMaskedLM", **SPARE, attention_type="original_full"),
    text("ConvBertForMaskedLM", embedding_size=WIDTH, conv_kernel_size=3),
    text("ErnieForMaskedLM"),
    text("EsmForMaskedLM", mask_token_id=4),
    text("FNetForMaskedLM", tpu_short_seq_length=7),
    Architecture(
        "FunnelForMaskedLM",
        SPECIAL
        | {"vocab_size": WORDS, "d_model": WIDTH, "n_head": 2, "d_head": 8, "d_inner": 24}
        | {"block_sizes": [1, 1], "num_decoder_layers": 1},
        lambda: words(length=8),
    ),
    text("IBertForMaskedLM"),
    text("LayoutLMForMaskedLM", max_2d_position_embeddings=8),
    text("LongformerForMaskedLM", **SPARE, attention_window=4),
    text("LukeForMaskedLM", entity_vocab_size=11, entity_emb_size=8),
    text("MegatronBertForMaskedLM"),
    text("MobileBertForMaskedLM", embedding_size=8, true_hidden_size=8, intra_bottleneck_size=8),
    text("ModernBertForMaskedLM", **SPARE),
    text("NystromformerForMaskedLM", num_landmarks=4, segment_means_seq_len=4),
    text("RoFormerForMaskedLM", embedding_size=8),
    text("SqueezeBertForMaskedLM", embedding_size=WIDTH),
    text("VisualBertForPreTraining", visual_embedding_dim=8),
    Architecture("ViltForMaskedLM", TEXT | VISION, picture_and_words),
]

# One tensor for the encoder's embedding, the decoder's, the head, and often a module that only holds it.
SEQ2SEQ = [
    t5("T5ForConditionalGeneration"),
    t5("MT5ForConditionalGeneration"),
    t5("UMT5ForConditionalGeneration"),
    t5("LongT5ForConditionalGeneration", local_radius=4),
    t5("SwitchTransformersForConditionalGeneration", num_experts=2),
    Architecture(
        "T5GemmaForConditionalGeneration",
        SPECIAL
        | {"vocab_size": WORDS, "encoder": TEXT | GROUPED}
        | {"decoder": TEXT | GROUPED | {"cross_attention_hidden_size": WIDTH}},
        two_texts,
    ),
    seq2seq("BartForConditionalGeneration"),
    seq2seq("MBartForConditionalGeneration"),
    seq2seq("PegasusForConditionalGeneration"),
    seq2seq("PegasusXForConditionalGeneration", block_size=4, num_global_tokens=2),
    seq2seq("MarianMTModel"),
    seq2seq("M2M100ForConditionalGeneration"),
    seq2seq("NllbMoeForConditionalGeneration", num_experts=2, encoder_sparse_step=1, decoder_sparse_step=1),
    seq2seq("SeamlessM4TForTextToText", hidden_size=WIDTH),
    seq2seq(
        "LEDForConditionalGeneration",
        attention_window=4,
        max_encoder_position_embeddings=64,
        max_decoder_position_embeddings=64,
    ),
    seq2seq("BlenderbotForConditionalGeneration"),
    seq2seq("BlenderbotSmallForConditionalGeneration"),
    seq2seq("BigBirdPegasusForConditionalGeneration", attention_type="original_full"),
    seq2seq("PLBartForConditionalGeneration"),
    seq2seq("MvpForConditionalGeneration"),
    seq2seq("FSMTForConditionalGeneration", src_vocab_size=WORDS, tgt_vocab_size=WORDS, langs=["en", "de"]),
    Architecture(
        "ProphetNetForConditionalGeneration",
        SPECIAL
        | {"vocab_size": WORDS, "hidden_size": WIDTH, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
        | {"num_encoder_layers": 1, "num_decoder_layers": 1, "max_position_embeddings": 64}
        | {"num_encoder_attention_heads": 2, "num_decoder_attention_heads": 2},
        two_texts,
    ),
]

# Layers that share: the same module called several times (Albert), or blocks of equal Parameters (Zamba).
LAYERS = [
    text("AlbertForMaskedLM", embedding_size=8),
    text(
        "ZambaForCausalLM",
        **SSM,
        num_hidden_layers=6,
        num_key_value_heads=2,
        n_mamba_heads=2,
        attn_layer_period=2,
        attn_layer_offset=1,
    ),
    text(
        "Zamba2ForCausalLM",
        **SSM,
        num_hidden_layers=4,
        num_key_value_heads=2,
        layers_block_type=["mamba", "hybrid"] * 2,
        mamba_headdim=8,
        n_mamba_heads=4,
        mamba_ngroups=1,
        num_mem_blocks=1,
        adapter_rank=2,
        chunk_size=4,
    ),
    Architecture(  # its heads, one for each layer, are one
        "DeformableDetrForObjectDetection",
        STACKS
        | {"backbone_config": RESNET, "num_queries": 3, "d_model": 32, "decoder_layers": 3, "num_feature_levels": 3},
        lambda: picture(64),
    ),
    Architecture(
        "DabDetrForObjectDetection",
        {name: size for name, size in STACKS.items() if name != "d_model"}
        | {"backbone_config": RESNET, "num_queries": 3, "hidden_size": WIDTH, "decoder_layers": 2},
        lambda: picture(64),
    ),
]

# Pictures and sound: parts of other models, and tensors that are no weights of a layer.
OTHERS = [
    Architecture("BlipForConditionalGeneration", BLIP, picture_and_words),
    text("GitForCausalLM", vision_config=VISION),
    text("ImageGPTForCausalImageModeling"),
    Architecture(
        "LlavaForConditionalGeneration",
        {
            "text_config": TEXT | {"model_type": "llama"},
            "vision_config": VISION | {"model_type": "clip_vision_model", "projection_dim": 8},
            "image_token_index": WORDS - 1,
            "tie_word_embeddings": True,
        },
        words,
    ),
    Architecture(
        "PaliGemmaForConditionalGeneration",
        {
            "text_config": TEXT | GROUPED | {"model_type": "gemma"},
            "vision_config": VISION | {"model_type": "siglip_vision_model"},
            "image_token_index": WORDS - 1,
            "projection_dim": WIDTH,
            "hidden_size": WIDTH,
        },
        words,
    ),
    Architecture(
        "Qwen2VLForConditionalGeneration",
        {
            "text_config": TEXT
            | {"num_key_value_heads": 1}
            | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}},
            "vision_config": {"depth": 1, "embed_dim": WIDTH, "hidden_size": WIDTH, "num_heads": 2, "patch_size": 4},
            "image_token_id": WORDS - 1,
            "video_token_id": WORDS - 2,
            "vision_start_token_id": WORDS - 3,
            "vision_end_token_id": WORDS - 4,
            "tie_word_embeddings": True,
        },
        words,
    ),
    Architecture(
        "Florence2ForConditionalGeneration",
        {
            "text_config": BART | {"model_type": "bart"},
            "vision_config": {
                "depths": [1],
                "patch_size": [4],
                "patch_stride": [4],
                "patch_padding": [0],
                "patch_prenorm": [False],
                "embed_dim": [WIDTH],
                "num_heads": [2],
                "num_groups": [2],
                "window_size": 4,
                "projection_dim": WIDTH,
            },
            "image_token_id": WORDS - 1,
        },
        two_texts,
    ),
    Architecture(  # four groups: embeddings, patches (weight and bias), and position biases
        "UdopForConditionalGeneration",
        T5 | {"image_size": 16, "patch_size": 8, "max_2d_position_embeddings": 16},
        lambda: two_texts() | picture() | {"bbox": torch.rand(2, 7, 4).sort(-1).values},
    ),
    Architecture(  # a Parameter of its own, no weight of a layer
        "SamModel",
        {
            "vision_config": VISION
            | {"output_channels": 8, "patch_size": 4, "num_pos_feats": 4, "window_size": 0}
            | {"global_attn_indexes": [0], "mlp_dim": 24},
            "prompt_encoder_config": {"hidden_size": 8, "image_size": 16, "patch_size": 4, "mask_input_channels": 4},
            "mask_decoder_config": {"hidden_size": 8, "mlp_dim": 16, "num_hidden_layers": 1}
            | {"num_attention_heads": 2, "iou_head_hidden_dim": 8},
        },
        lambda: picture() | {"input_points": torch.rand(2, 1, 2, 2) * 16},
    ),
    Architecture(
        "WhisperForConditionalGeneration",
        BART
        | {"num_mel_bins": 8, "max_source_positions": 8, "max_target_positions": 16, "begin_suppress_tokens": None},
        spectrum(8, 16),
    ),
    Architecture(
        "Speech2TextForConditionalGeneration",
        BART
        | {"conv_channels": 8, "input_feat_per_channel": 8, "max_source_positions": 64, "max_target_positions": 64},
        spectrum(16, 8),
    ),
    Architecture(
        "MoonshineForConditionalGeneration",
        SPECIAL
        | {"vocab_size": WORDS, "hidden_size": WIDTH, "intermediate_size": 24}
        | {f"{stack}_num_hidden_layers": 1 for stack in ("encoder", "decoder")}
        | {f"{stack}_num_attention_heads": 2 for stack in ("encoder", "decoder")},
        waves(1024),
    ),
    Architecture(
        "SpeechT5ForSpeechToText",
        BART
        | {"hidden_size": WIDTH, "conv_dim": [8, 8], "conv_stride": [4, 4], "conv_kernel": [4, 4]}
        | {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "num_mel_bins": 8}
        | {"speech_decoder_prenet_units": 8, "speech_decoder_postnet_units": 8, "apply_spec_augment": False}
        | {"max_text_positions": 64, "max_speech_positions": 64},
        waves(256),
    ),
]

ZOO = [*DECODERS, *MASKED, *SEQ2SEQ, *LAYERS, *OTHERS]


def tensors(output: Any) -> Iterator[Tensor]:
    """Yield every tensor of real numbers in what a model returns."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, dict):
        for value in output.values():
            yield from tensors(value)
    elif isinstance(output, tuple | list):
        for value in output:
            yield from tensors(value)
