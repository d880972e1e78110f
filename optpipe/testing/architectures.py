"""The hand-made tiny configurations: a table of what each architecture has that others lack.

Each has at least two layers of every layer type, and every window is shorter than a probe of 40 tokens.
Sizes are small but never equal by accident: a transposed matrix or a swapped head count must not fit.
"""

from __future__ import annotations

from typing import Any, Final

PROBE_TOKENS: Final = 40  # longer than every window and chunk below
VOCAB: Final = 264  # 256 bytes, three special tokens, five unused rows: see tokenizer.py
WINDOW: Final = 8

_LAYERS = ["full_attention", "sliding_attention"] * 2
_BASE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 258,
}
_GPT2_NAMES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "n_positions": 512,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 258,
}
_GEMMA = {"num_hidden_layers": 4, "head_dim": 24, "query_pre_attn_scalar": 24, "sliding_window": WINDOW}


def _rope(**values: object) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10000.0, **values}


# name -> (transformers' model type, what its configuration sets)
ARCHITECTURES: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "llama": ("llama", {**_BASE, "head_dim": 16}),
    "llama-tied": ("llama", {**_BASE, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "mistral": ("mistral", {**_BASE, "sliding_window": WINDOW, "head_dim": 24}),
    "qwen2": ("qwen2", {**_BASE, "tie_word_embeddings": True}),
    "qwen2-moe": (
        "qwen2_moe",
        {
            **_BASE,
            "num_hidden_layers": 4,
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "layer_types": ["full_attention", "full_attention", "sliding_attention", "sliding_attention"],
            "mlp_only_layers": [0, 2],
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 48,
        },
    ),
    "qwen3": ("qwen3", {**_BASE, "head_dim": 24, "tie_word_embeddings": True}),
    "gemma2": (
        "gemma2",
        {
            **_BASE,
            **_GEMMA,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma3": (
        "gemma3_text",
        {
            **_BASE,
            **_GEMMA,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "full_attention"],
            "rope_parameters": {
                "sliding_attention": _rope(),
                "full_attention": _rope(rope_type="linear", rope_theta=1000000.0, factor=8.0),
            },
        },
    ),
    "phi3": (
        "phi3",
        {**_BASE, "rope_parameters": _rope(partial_rotary_factor=0.5), "sliding_window": WINDOW},
    ),
    "gpt2": ("gpt2", {**_GPT2_NAMES, "n_inner": 96}),
    "gpt-neox": (
        "gpt_neox",
        {**_BASE, "rope_parameters": _rope(partial_rotary_factor=0.5), "use_parallel_residual": True},
    ),
    "opt": (
        "opt",
        {
            "vocab_size": VOCAB,
            "hidden_size": 64,
            "ffn_dim": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 512,
            "word_embed_proj_dim": 48,
            "bos_token_id": 256,
            "eos_token_id": 257,
            "pad_token_id": 258,
        },
    ),
    "stablelm": (
        "stablelm",
        {
            **_BASE,
            "rope_parameters": _rope(partial_rotary_factor=0.25),
            "use_qkv_bias": True,
            "qk_layernorm": True,
            "layer_norm_eps": 1e-5,
        },
    ),
    "olmo2": ("olmo2", {**_BASE}),
    "granite": (
        "granite",
        {
            **_BASE,
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.2,
            "residual_multiplier": 0.6,
            "logits_scaling": 2.0,
        },
    ),
    "cohere": ("cohere", {**_BASE, "logit_scale": 0.25, "use_qk_norm": True}),
    "smollm3": (
        "smollm3",
        {
            **_BASE,
            "num_hidden_layers": 4,
            "no_rope_layers": [1, 0, 1, 0],
            "layer_types": ["full_attention"] * 4,
        },
    ),
    "mixtral": (
        "mixtral",
        {**_BASE, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": WINDOW},
    ),
    "qwen3-moe": (
        "qwen3_moe",
        {
            **_BASE,
            "num_hidden_layers": 4,
            "mlp_only_layers": [0, 1],
            "head_dim": 24,
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 32,
            "norm_topk_prob": True,
        },
    ),
    "gpt-oss": (
        "gpt_oss",
        {
            **_BASE,
            "num_hidden_layers": 4,
            "layer_types": _LAYERS,
            "sliding_window": WINDOW,
            "head_dim": 16,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "rope_parameters": _rope(
                rope_type="yarn",
                factor=4.0,
                beta_fast=32.0,
                beta_slow=1.0,
                truncate=False,
                original_max_position_embeddings=128,
            ),
        },
    ),
    "falcon": (
        "falcon",
        {
            "vocab_size": VOCAB,
            "hidden_size": 64,
            "ffn_hidden_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "multi_query": True,
            "parallel_attn": True,
            "bias": True,
            "bos_token_id": 256,
            "eos_token_id": 257,
        },
    ),
    "falcon-new": (
        "falcon",
        {
            "vocab_size": VOCAB,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_kv_heads": 2,
            "new_decoder_architecture": True,
            "bos_token_id": 256,
            "eos_token_id": 257,
        },
    ),
    "gptj": ("gptj", {**_GPT2_NAMES, "n_inner": 96, "rotary_dim": 8}),
    "bloom": (
        "bloom",
        {
            "vocab_size": VOCAB,
            "hidden_size": 72,
            "n_layer": 2,
            "n_head": 6,
            "bos_token_id": 256,
            "eos_token_id": 257,
            "pad_token_id": 258,
        },
    ),
}
