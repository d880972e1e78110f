"""What the rules of ``shrink.py`` get wrong, one entry a model type.

A name with a ``+`` goes into the default configuration too (when the default does not even construct).
A name of a nested configuration holds the overrides of that configuration.
"""

from __future__ import annotations

from typing import Any, Final

from .architectures import WINDOW

_DECODER = {"is_decoder": True}  # BERT and its kin: with it their language model head is causal
# RoBERTa and its kin count from one past the padding token's id
_AFTER_PADDING = {**_DECODER, "max_position_embeddings": 520}
_MIXED = ["full_attention", "sliding_attention"] * 2
_WINDOWED = {
    "use_sliding_window": True,
    "sliding_window": WINDOW,
    "num_hidden_layers": 4,
    "layer_types": _MIXED,
}
_HALVES = {"num_hidden_layers": 4, "layer_types": ["linear_attention", "full_attention"] * 2}
_LLAMA4 = {
    "num_hidden_layers": 4,
    "layer_types": ["chunked_attention", "full_attention"] * 2,
    "no_rope_layers": [1, 0, 1, 0],
    "moe_layers": [2, 3],
}
_SHARED_KV = {
    "num_hidden_layers": 8,
    "layer_types": ["sliding_attention", "full_attention"] * 4,
    "num_kv_shared_layers": 4,
}
_GEMMA3N = {**_SHARED_KV, "activation_sparsity_pattern": [0.9, 0.0] * 4, "intermediate_size": [96] * 8}
_DOTS3 = {
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 4,
    "swa_q_lora_rank": 32,
    "swa_kv_lora_rank": 24,
    "swa_head_dim": 24,
    "swa_qk_nope_head_dim": 16,
    "swa_qk_rope_head_dim": 8,
    "swa_v_head_dim": 16,
}
_QWEN4 = {
    "indexer_n_heads": 4,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": WINDOW,
    "indexer_compress_ratio": 2,
    "hc_lowrank": 16,
}

OVERRIDES: Final[dict[str, dict[str, Any]]] = {
    **dict.fromkeys(
        (
            *("bert", "bert-generation", "big_bird", "electra", "ernie", "megatron-bert", "rembert"),
            *("roc_bert", "roformer", "xlnet"),
        ),
        _DECODER,
    ),
    **dict.fromkeys(
        ("camembert", "data2vec-text", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl"),
        _AFTER_PADDING,
    ),
    "bamba": {"num_hidden_layers": 4, "attn_layer_indices": [1, 3]},
    "blt": {
        "encoder_config": {"hidden_size_global": 64},
        "decoder_config": {"hidden_size_global": 64},
        "encoder_hash_byte_group_vocab": 100,
    },
    "big_bird": {**_DECODER, "attention_type": "original_full"},
    "cohere_compass_text": {
        "num_hidden_layers": 4,
        "layer_types": _MIXED,
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 10000.0}
            for kind in ("full_attention", "sliding_attention")
        },
    },
    "dbrx": {
        "rope_theta": 10000.0,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 4.0},
        "ffn_config": {"hidden_size": 64, "ffn_hidden_size": 48, "moe_top_k": 2},
    },
    "deepseek_v2": {"num_experts_per_tok": 2, "first_k_dense_replace": 2, "num_hidden_layers": 4},
    "dots1": {
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 2,
        "num_hidden_layers": 4,
        "layer_types": _MIXED,
    },
    "dots3_note": {
        "vision_config": {"adapter_in_dim": 64, "adapter_out_dim": 64},
        "audio_config": {"adapter_input_size": 64, "adapter_out_dim": 64},
        "text_config": _DOTS3,
    },
    "dots3_note_text": _DOTS3,
    "ernie4_5_moe": {"num_hidden_layers": 4, "moe_layer_start_index": 2, "moe_layer_end_index": 3},
    "falcon_h1": {"mamba_d_ssm": 128, "mamba_expand": 2},
    "flint": {"num_hidden_layers": 4, "mlp_only_layers": [0, 1], "layer_types": _MIXED},
    "gemma3n": {"text_config": _GEMMA3N},
    "gemma3n_text": _GEMMA3N,
    "granitemoehybrid": {**_HALVES},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "jamba": {
        "num_hidden_layers": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
    },
    "lfm2": {
        "num_hidden_layers": 4,
        "layer_types": ["conv", "full_attention"] * 2,
        "full_attn_idxs": [1, 3],
        "block_multiple_of": 16,
    },
    "lfm2_moe": {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention"] * 2},
    "llama4": {"text_config": _LLAMA4},
    "llama4_text": _LLAMA4,
    "longcat_flash": {"zero_expert_num": 4},
    "mamba2": {"head_dim": 32, "num_heads": 4},
    "mellum": {
        "sliding_window": WINDOW,
        "num_hidden_layers": 4,
        "layer_types": _MIXED,
        "mlp_layer_types": ["dense", "dense", "sparse", "sparse"],
    },
    "ministral": {"head_dim": 16, "num_hidden_layers": 4, "layer_types": _MIXED},
    "modernbert-decoder": {"global_attn_every_n_layers": 2},
    "mpt": {"attn_config": {"alibi": True}},
    "nemotron": {"num_key_value_heads": 2},
    "nemotron_h": {
        "num_hidden_layers": 8,
        "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"] * 2,
    },
    "phimoe": {"sliding_window": WINDOW},
    "qwen2": _WINDOWED,
    "qwen2_moe": {**_WINDOWED, "mlp_only_layers": [0, 1]},
    "qwen3": _WINDOWED,
    "qwen3_moe": {"num_hidden_layers": 4, "mlp_only_layers": [0, 1]},
    "qwen4_exp": {"text_config": _QWEN4},
    "qwen4_exp_text": _QWEN4,
    "recurrent_gemma": {"num_hidden_layers": 6},
    "reformer": {"is_decoder": True, "axial_pos_embds_dim": [24, 40], "axial_pos_shape": [16, 32]},
    "starcoder2": {"sliding_window": WINDOW},
    "xlm": {"causal": True},
    "xmod": {**_AFTER_PADDING, "default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1},
}

# Model types that cannot be made tiny and run on text alone, and why: one line each, for the coverage table.
NOT_RUNNABLE: Final[dict[str, str]] = {
    "gemma3n": "its vision tower comes from timm, which is not installed; gemma3n_text is its text part",
    "gemma4_assistant": "it drafts from the keys and values of another model and has none of its own",
    "gemma4_unified_assistant": "it drafts from the keys and values of another model and has none of its own",
    "musicgen": "it decodes several audio codes a step, not text",
    "musicgen_melody": "it decodes several audio codes a step, not text",
}
