"""Shrink any transformers configuration by rules over the names of its attributes.

    glm4: hidden_size 4096 → 64, 40 layers → 4, head_dim 128 → 16, vocab 151552 → 264, …

A rule is data: attribute name → tiny value. Lists that say something of each layer (``layer_types``, …) keep
every kind that the default has, twice. What the rules get wrong for one model stands in ``OVERRIDES``.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, cast

from .architectures import VOCAB, WINDOW
from .overrides import OVERRIDES

if TYPE_CHECKING:
    from transformers import PretrainedConfig

HIDDEN: Final = 64
HEADS: Final = 4
KV_HEADS: Final = 2
HEAD_DIM: Final = 16
ROTARY_DIM: Final = 8
POSITIONS: Final = 512

# Value ← attributes. An attribute that the default sets to None, False or 0 keeps that: it means "off".
_TABLE: Final[tuple[tuple[float, str], ...]] = (
    (HIDDEN, "hidden_size d_model n_embd emb_dim word_embed_proj_dim embedding_dim lru_width"),
    (48, "embedding_size input_embedding_size output_embedding_size"),
    (HEADS, "num_attention_heads n_head n_heads num_heads decoder_attention_heads attention_heads"),
    (HEADS, "encoder_attention_heads num_encoder_attention_heads num_decoder_attention_heads"),
    (HEADS, "swa_num_attention_heads index_n_heads linear_num_heads"),
    (HEADS, "linear_num_key_heads linear_num_value_heads mamba_n_heads mamba_num_heads n_mamba_heads"),
    (HEAD_DIM, "head_dim swa_head_dim d_head dim_head linear_head_dim linear_key_head_dim"),
    (HEAD_DIM, "linear_value_head_dim kv_channels v_head_dim qk_nope_head_dim index_head_dim"),
    (HEAD_DIM, "query_pre_attn_scalar hidden_size_per_layer_input"),
    (ROTARY_DIM, "qk_rope_head_dim rotary_dim"),
    (HEAD_DIM + ROTARY_DIM, "qk_head_dim"),
    (24, "kv_lora_rank"),
    (32, "q_lora_rank"),
    (96, "intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim ffn_hidden_size dff dim_ff d_inner"),
    (96, "feed_forward_size intermediate_size_mlp n_inner dense_intermediate_size"),
    (32, "moe_intermediate_size expert_ffn_hidden_size"),
    (48, "shared_expert_intermediate_size shared_intermediate_size moe_shared_expert_intermediate_size"),
    (48, "shared_experts_intermediate_size"),
    (8, "num_experts num_local_experts n_routed_experts moe_num_experts"),
    (2, "num_experts_per_tok num_experts_per_token moe_topk moe_k n_group num_expert_group"),
    (1, "topk_group n_shared_experts num_shared_experts moe_num_shared_experts n_groups"),
    (2, "first_k_dense_replace num_dense_layers moe_layer_start_index"),
    (VOCAB, "vocab_size vocab_size_per_layer_input"),
    (POSITIONS, "max_position_embeddings n_positions n_ctx max_seq_len"),
    (POSITIONS, "max_source_positions max_target_positions"),
    (WINDOW, "sliding_window sliding_window_size attention_window_size window_size attention_chunk_size"),
    (WINDOW, "local_attention keep_window_size index_topk mamba_chunk_size chunk_size"),
    (16, "floor_scale"),
    (0, "num_nextn_predict_layers num_kv_shared_layers"),
    (8, "mamba_d_state state_size ssm_state_size mamba_dt_rank time_step_rank"),
    (32, "mamba_d_head mamba_head_dim mamba_headdim image_size tile_size"),
    (1e-5, "rms_norm_eps layer_norm_eps layer_norm_epsilon norm_eps"),
)
RULES: Final = {name: value for value, names in _TABLE for name in names.split()}
HEADS_NAMES: Final = ("num_attention_heads", "n_head", "n_heads")
KV_NAMES: Final = ("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads", "num_query_groups")
LAYER_NAMES: Final = (
    *("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"),
    *("num_encoder_layers", "num_decoder_layers", "num_blocks", "depth", "num_layers_per_stack"),
)
SPECIAL_TOKENS: Final = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
SMALL_TOKEN: Final = 3  # any other special id past the vocabulary: its value does not matter
MOST_KINDS: Final = 4  # a list with more different entries numbers the layers, it does not sort them
KEEP_OFF: Final = (None, False, 0)


def shrunk_config(model_type: str) -> PretrainedConfig:
    """The default configuration of ``model_type`` with every size made tiny."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # defaults that their own validation dislikes
        return _shrink(CONFIG_MAPPING[model_type], OVERRIDES.get(model_type, {}))


def _shrink(config_class: Any, overrides: Mapping[str, Any]) -> PretrainedConfig:
    start = {name: value for name, value in overrides.items() if name.startswith("+")}
    default = config_class(**{name[1:]: value for name, value in start.items()})
    values = {name[1:]: value for name, value in start.items()}
    values |= _sizes(default)
    values |= _layer_lists(default, values)
    for name, sub_class in (getattr(config_class, "sub_configs", None) or {}).items():
        inner = overrides.get(name, {})
        sub_default = getattr(default, name, None)
        if sub_default is not None:
            known = type(sub_default) if not isinstance(sub_default, dict) else sub_class
            values[name] = _shrink(known, inner).to_dict()
    nested = set(getattr(config_class, "sub_configs", None) or {})
    plain = {n: v for n, v in overrides.items() if not n.startswith("+") and n not in nested}
    return cast("PretrainedConfig", config_class(**(values | plain)))


def _sizes(default: PretrainedConfig) -> dict[str, Any]:
    """Every attribute of the default that a rule makes smaller."""
    values: dict[str, Any] = {}
    attributes = default.to_dict()
    heads = next((attributes[n] for n in HEADS_NAMES if n in attributes), None)
    for name, value in attributes.items():
        if name in SPECIAL_TOKENS and value is not None:
            values[name] = SPECIAL_TOKENS[name]
        elif name.endswith(("_token_id", "token_index")) and isinstance(value, int) and value >= VOCAB:
            values[name] = SMALL_TOKEN
        elif name in KV_NAMES and value is not None:
            values[name] = HEADS if value == heads else KV_HEADS
        elif name in LAYER_NAMES and value:
            values[name] = 2
        elif name in RULES and value not in KEEP_OFF and not isinstance(value, (list, dict)):
            values[name] = RULES[name]
    if attributes.get("qk_rope_head_dim") and attributes.get("head_dim") == attributes["qk_rope_head_dim"]:
        values["head_dim"] = RULES["qk_rope_head_dim"]  # latent attention calls its rotary part the head
    return values


def _layer_lists(default: PretrainedConfig, values: dict[str, Any]) -> dict[str, Any]:
    """Lists with one entry a layer: every kind twice, two lists in every combination.

    Returns the lists, and the number of layers they need.
    """
    layers_name = next((n for n in LAYER_NAMES if n in values), None)
    lists = {
        name: value
        for name, value in default.to_dict().items()
        if isinstance(value, list) and layers_name and len(value) == getattr(default, layers_name) > 2
    }
    kinds = {name: list(dict.fromkeys(map(_hashable, value))) for name, value in lists.items()}
    kinds = {name: kind for name, kind in kinds.items() if len(kind) <= MOST_KINDS}
    most = max((len(k) for k in kinds.values()), default=1)
    first_dense = max((values.get(n, 0) for n in ("first_k_dense_replace", "num_dense_layers")), default=0)
    layers = max(2, 2 * most, 4 if first_dense or len([k for k in kinds.values() if len(k) > 1]) > 1 else 0)
    if layers_name is None:
        return {}
    result: dict[str, Any] = {layers_name: layers}
    for position, (name, kind) in enumerate(kinds.items()):
        run = 1 if position == 0 else max(1, layers // len(kind))
        result[name] = [kind[(i // run) % len(kind)] for i in range(layers)]
    return result


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
