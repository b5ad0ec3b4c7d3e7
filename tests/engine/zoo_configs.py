"""Tiny configs of every architecture, shrunk from transformers' own defaults by the names of their fields.

`causal_types()` lists them, `tiny_config(model_type)` makes one. Nothing is known about any architecture but the lines
of `OVERRIDES`, each of which says why the general rule fails there.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, VOCABULARY = 64, 4, 2, 16, 256
WIDE, NARROW = 192, 32
"""Widths of dense MLPs and of experts, unlike every other width so that no pair fits by chance."""

SIZES: dict[int, str] = {
    HIDDEN: """index_topk out_hidden_size hidden_size d_model n_embd dim embed_dim hidden_dim word_embed_proj_dim
        embedding_size embedding_dim input_embedding_size output_embedding_size emb_dim lru_width
        decoder_hidden_size qformer_hidden_size projection_dim projector_hidden_size projection_hidden_dim
        text_hidden_size attention_hidden_size backbone_hidden_size cross_attention_dim encoder_hidden_size
        image_token_embed_dim hidden_size_global vision_hidden_size output_dim image_text_hidden_size
        d_inner vision_embed_dim kv_dim latent_dim pooler_output_size""",
    WIDE: """intermediate_size ffn_dim ffn_hidden_size dim_ff dff d_ff n_inner decoder_ffn_dim encoder_ffn_dim mlp_dim
        intermediate_size_mlp dense_intermediate_size shared_intermediate_size projection_intermediate_size
        feed_forward_size""",
    NARROW: """moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size q_lora_rank kv_lora_rank
        shared_experts_intermediate_size moe_shared_expert_intermediate_size o_lora_rank router_hidden_size
        linear_key_head_dim linear_value_head_dim qk_head_dim mamba_d_head hidden_size_per_layer_input linear_head_dim
        time_step_rank mamba_dt_rank state_size ple_embed_dim moe_hidden_size hc_lowrank adapter_rank
        share_expert_dim""",
    VOCABULARY: """vocab_size vocab_size_per_layer_input codebook_size audio_vocab_size decoder_vocab_size n_positions
        max_position_embeddings unpadded_vocab_size max_seq_len seq_length context_length pronunciation_vocab_size
        shape_vocab_size encoder_hash_byte_group_vocab mel_vocab_size original_max_position_embeddings n_ctx
        max_target_positions num_position_embeddings ngram_vocab_size_base""",
    HEADS: """num_attention_heads n_head n_heads num_heads attention_heads decoder_attention_heads
        encoder_attention_heads linear_num_value_heads swa_num_attention_heads index_n_heads num_query_groups
        mamba_n_heads mamba_num_heads num_decoder_attention_heads num_encoder_attention_heads linear_num_heads
        num_sliding_attention_heads num_experts num_local_experts n_routed_experts moe_num_experts zero_expert_num
        merger_times block_size hc_mult hc_count""",
    KV_HEADS: """num_key_value_heads kv_n_heads num_kv_heads swa_num_key_value_heads num_global_key_value_heads
        linear_num_key_heads n_layer num_hidden_layers n_layers num_layers decoder_layers encoder_layers depth layers
        num_decoder_layers num_encoder_layers resampler_depth num_experts_per_tok num_experts_per_token moe_k moe_topk
        moe_top_k top_k n_mamba_heads n_groups mamba_n_groups num_blocks depths decoder_sparse_step num_residual_layers
        o_groups index_topk_blocks centroid_intermediate_top_k""",
    HEAD_DIM: """head_dim attention_head_dim d_kv dim_head qk_rope_head_dim qk_nope_head_dim v_head_dim swa_head_dim
        index_head_dim kv_channels rotary_dim d_head attention_head_size mamba_head_dim mamba_d_state
        ssm_state_size swa_v_head_dim resampler_head_dim num_query_tokens laurel_rank chunk_size
        mamba_chunk_size index_block_size prompt_length""",
    1: """n_group topk_group num_expert_group n_shared_experts num_shared_experts moe_num_shared_experts
        first_k_dense_replace num_dense_layers num_mem_blocks num_nextn_predict_layers""",
    NARROW + 1: "sliding_window attention_window_size sliding_window_size attention_chunk_size",
}  # fmt: skip
"""Size -> names of config fields, at any depth, that get it."""

FIELDS = {name: size for size, names in SIZES.items() for name in names.split()}

PERIODS: dict[str, int] = {
    "full_attention_interval": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
    "expert_layer_offset": 1, "no_rope_layer_interval": 2, "sliding_window_pattern": 2, "_sliding_window_pattern": 2,
    "global_attn_every_n_layers": 2, "layer_group_size": 2, "interleave_moe_layer_step": 2, "num_kv_shared_layers": 1,
}  # fmt: skip
"""Fields that say which blocks are of which kind: small, so that a handful of blocks has them all."""

UNSET: dict[str, int] = {
    "head_dim": HEAD_DIM, "num_key_value_heads": KV_HEADS, "n_routed_experts": 4, "n_shared_experts": 1,
    "num_experts_per_tok": 2, "moe_intermediate_size": NARROW,
}  # fmt: skip
"""Fields that some defaults leave as None although every real checkpoint of the kind sets them."""

ROPE = {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}

MROPE = {"text_config.rope_parameters.mrope_section": [2, 3, 3]}  # has to make half of the head's width
INDEXER = {
    "indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 64,
    "indexer_compress_ratio": 4,
}  # fmt: skip

OVERRIDES: dict[str, dict[str, Any]] = {
    "cohere_compass_text": {"rope_parameters": ROPE},  # its default has no entry for the one layer type it uses
    "dbrx": {"attn_config.clip_qkv": 8.0, "attn_config.rope_theta": 1e4},  # neither has a default that works
    "reformer": {"is_decoder": True},  # refuses to be a language model without
    "mamba2": {"head_dim": 32},  # heads x width = 2 x hidden size
    "falcon_h1": {"mamba_d_ssm": 32},  # heads x width of its state-space part
    "gemma4_text": {  # the small released ones share keys and values; the default does not
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "per_layer_config": {1: {"head_dim": 32}, 3: {"head_dim": 32}},
    },
    "gemma3n_text": {  # three kinds of layers are not enough: both types must come before the shared ones
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "intermediate_size": [192] * 4,
        "activation_sparsity_pattern": [0.95, 0.95, 0.0, 0.0],
    },
    "mllama": {"text_config.cross_attention_layers": [1]},  # past the end of three layers
    "xmod": {"default_language": "en_XX"},  # refuses to run without
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_hidden_layers": 4, "num_dense_layers": 1},  # none
    "glm4v": MROPE,
    "glm46v": MROPE,
    "glm4v_moe": {"text_config.rope_parameters.mrope_section": [2, 1, 1]},  # it rotates half of a head
    "glm_ocr": MROPE,
    "paddleocr_vl": MROPE,
    "qwen2_5_omni_thinker": MROPE,
    "qwen2_vl": MROPE,
    "qwen2_5_vl": MROPE,
    "qwen3_vl": MROPE,
    "qwen3_vl_moe": MROPE,
    "big_bird": {"attention_type": "original_full"},  # what it falls back to, by itself, on short texts
    "qwen4_exp_text": INDEXER,  # has no defaults for its indexer
    "zamba2": {  # heads x width = 2 x hidden size; weights are shared from the second hybrid layer on
        "mamba_headdim": 64,
        "hybrid_layer_ids": [1, 3],
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        "num_hidden_layers": 4,
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
    },
    "zamba": {  # weights are shared from the second hybrid layer on
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        "num_hidden_layers": 4,
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
    },
}
"""Model type -> fields of its config (`text_config.x` for nested ones) that the general rule cannot know."""

PREFIXES = {"deepseek_v4": "model."}
"""Model type -> what transformers writes before the names of tensors that released checkpoints of it do not have, and
whose renaming goes wrong with it."""

UNHANDLED: dict[str, str] = {
    "qwen4_exp": "no tiny config was found that transformers can build",
    "dots3_note": "no tiny config was found that passes its own checks",
    "dots3_note_text": "no tiny config was found that passes its own checks",
    "emu3": "no tiny config was found that transformers can build",
    "gemma3n": "needs the package timm, which is not installed here; its text model gemma3n_text is handled",
    "gemma4_assistant": "drafts from another model's keys and values and is no language model by itself",
    "gemma4_unified_assistant": "drafts from another model's keys and values and is no language model by itself",
    "hrm_text": "runs its blocks in a loop",
    "musicgen": "transformers cannot build it from its own config; it makes sound, not text",
    "musicgen_melody": "transformers cannot build it from its own config; it makes sound, not text",
    "reformer": "its blocks are reversible: two streams run through them",
    "rwkv": "divides the output weights of its blocks when it first runs, past the modules",
    "xlm": "has no blocks: attention and MLP are kept in separate lists, with sums between them",
}
"""Types that do not go through, and why."""

VISION_LANGUAGE = (
    "aya_vision", "cohere2_vision", "cosmos3_omni", "deepseek_vl", "deepseek_vl_hybrid", "exaone4_5", "glm46v", "glm4v",
    "glm4v_moe", "glm5_next", "glm_ocr", "granite_docling", "idefics2", "idefics3", "inkling2", "internvl", "janus",
    "kimi_k25", "lfm2_vl", "lfm3_vl", "lighton_ocr", "llava", "llava_next", "llava_next_video", "llava_onevision",
    "minicpmv4_6", "minimax_m3_vl", "mistral3", "mistral_large4", "muse_glimmer", "muse_spark", "nemotron_h_omni",
    "ovis2", "paddleocr_vl", "paligemma", "qianfan_ocr", "qwen2_5_omni_thinker", "qwen2_5_vl", "qwen2_vl",
    "qwen3_omni_moe_thinker", "qwen3_vl", "qwen3_vl_moe", "smolvlm", "unlimited_ocr", "video_llama_3", "video_llava",
    "vipllava",
)  # fmt: skip
"""Checkpoints that people quantize and that are no causal language model as such."""


def causal_types() -> list[str]:
    """Every model type that transformers maps to a causal language model."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_config(model_type: str) -> PreTrainedConfig:
    """The config of `model_type` with tiny sizes and every kind of block it has."""
    kind = CONFIG_MAPPING[model_type]
    fields = kind().to_dict()
    _shrink(fields)
    for path, value in OVERRIDES.get(model_type, {}).items():
        *parents, name = path.split(".")
        target = fields
        for parent in parents:
            target = target[parent]
        target[name] = value
    return kind.from_dict(fields)


def _shrink(fields: dict[str, Any]) -> None:
    """Make one config small in place, nested configs included."""
    counter = _shrink_layers(fields)
    for name, value in fields.items():
        if isinstance(value, dict):
            _shrink(value)
        elif value is None and name in UNSET:
            fields[name] = UNSET[name]
        elif isinstance(value, int) and not isinstance(value, bool) and name != counter:
            fields[name] = _small(name, value, fields)

    if "kv_lora_rank" in fields and "num_key_value_heads" in fields:  # multi-latent attention shares no heads
        fields["num_key_value_heads"] = HEADS


def _small(name: str, value: int, fields: dict[str, Any]) -> int:
    if name in ("image_size", "img_size") and isinstance(patch := fields.get("patch_size"), int):
        return 4 * patch
    if name.endswith(("_token_id", "_token_index", "_id")) and value >= VOCABULARY:
        return VOCABULARY - 1 - hash_name(name) % 50
    if name in PERIODS:
        return min(value, PERIODS[name])
    return min(value, FIELDS[name]) if name in FIELDS and value > 0 else value


def hash_name(name: str) -> int:
    """A number that depends on a name alone."""
    return sum(name.encode())


MOST_LAYERS = 6
LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


def _shrink_layers(fields: dict[str, Any]) -> str | None:
    """Keep as few layers as show every combination of what is said per layer, two at least; the counter's name.

    None, with nothing done, when nothing is said per layer.
    """
    counter = next((name for name in LAYER_COUNTS if isinstance(fields.get(name), int)), None)
    if counter is None:
        return None
    count = fields[counter]
    lists = {n: v for n, v in fields.items() if isinstance(v, list | tuple) and len(v) == count > 3}
    tables = {n: v for n, v in fields.items() if isinstance(v, dict) and v and all(str(key).isdigit() for key in v)}
    tables = {name: {int(key): value for key, value in table.items()} for name, table in tables.items()}
    if not lists and not tables:
        return None
    kinds: dict[str, int] = {}
    for index in range(count):
        said = [v[index] for v in lists.values()] + [v.get(index) for v in tables.values()]
        kinds.setdefault(repr(said), index)
    chosen = sorted(kinds.values())[:MOST_LAYERS]
    chosen = chosen if len(chosen) > 1 else [0, 1]
    for name, values in lists.items():
        fields[name] = [FIELDS.get(name, values[i]) if isinstance(values[i], int) else values[i] for i in chosen]
    for name, table in tables.items():
        fields[name] = {new: table[old] for new, old in enumerate(chosen) if old in table}
    fields[counter] = len(chosen)
    return counter
