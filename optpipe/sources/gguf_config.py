"""GGUF architectures: how their metadata becomes a config, and their tensor names a model's.

    GGUF                          config.json
    embedding_length              hidden_size
    feed_forward_length           intermediate_size
    block_count                   num_hidden_layers
    attention.head_count[_kv]     num_attention_heads, num_key_value_heads
    attention.key_length          head_dim
    rope.freq_base                rope_parameters.rope_theta
    context_length                max_position_embeddings

Source: ggml docs/gguf.md and the converters of llama.cpp, whose changes are undone here and in gguf.py.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from optpipe.errors import ModelError, nearest
from optpipe.weights.gguf_file import GgufFile

Config = dict[str, Any]

_TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_TWO_NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
_FOUR_NORMS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_HEAD_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}


class Metadata:
    """The keys of one architecture, with the types that are expected of them."""

    def __init__(self, file: GgufFile) -> None:
        self.file, self.prefix = file, file.architecture

    def get(self, key: str) -> Any:
        """A key of the architecture, or None."""
        return self.file.metadata.get(f"{self.prefix}.{key}")

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number above zero; absent and without a default it is an error."""
        value = self.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 31:
            raise ModelError(
                f"The GGUF file '{self.file.path.name}' says {value!r} for '{self.prefix}.{key}', "
                "and a whole number above zero is needed."
            )
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number above zero; absent and without a default it is an error."""
        value = self.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
            raise ModelError(
                f"The GGUF file '{self.file.path.name}' says {value!r} for '{self.prefix}.{key}', "
                "and a number above zero is needed."
            )
        return shortest(value)


def shortest(value: float) -> float:
    """The shortest decimal that is the same number in float32, as people wrote it.

    >>> shortest(9.999999747378752e-06)
    1e-05
    """
    for digits in range(1, 18):
        near = float(f"{value:.{digits}g}")
        if struct.pack("<f", near) == struct.pack("<f", value):
            return near
    return float(value)


def _common(meta: Metadata) -> Config:
    """What all decoder-only models here share."""
    tensors = meta.file.tensors
    if "token_embd.weight" not in tensors:
        raise ModelError(f"The GGUF file '{meta.file.path.name}' has no tensor 'token_embd.weight'.")
    if meta.integer("block_count") > len(tensors):
        raise ModelError(
            f"The GGUF file '{meta.file.path.name}' says it has {meta.integer('block_count')} layers, "
            f"and has {len(tensors)} tensors."
        )
    heads, hidden = meta.integer("attention.head_count"), meta.integer("embedding_length")
    ids = {
        name: meta.file.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "padding")
    }
    return {
        "vocab_size": tensors["token_embd.weight"].shape[0],
        "hidden_size": hidden,
        "intermediate_size": meta.integer("feed_forward_length"),
        "num_hidden_layers": meta.integer("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": meta.integer("attention.head_count_kv", heads),
        "head_dim": meta.integer("attention.key_length", max(1, hidden // heads)),
        "max_position_embeddings": meta.integer("context_length"),
        "rms_norm_eps": meta.number("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in tensors,
        "bos_token_id": ids["bos"],
        "eos_token_id": ids["eos"],
        "pad_token_id": ids["padding"],
    }


def _rope(meta: Metadata, default_theta: float = 10000.0) -> Config:
    """rope_parameters, from the scaling keys or from the factors a file was converted with."""
    theta = meta.number("rope.freq_base", default_theta)
    scaling = meta.get("rope.scaling.type")
    if "rope_freqs.weight" in meta.file.tensors:
        return _llama3_rope(meta, theta)
    if scaling in (None, "none"):
        return {"rope_type": "default", "rope_theta": theta}
    if scaling == "linear":
        return {"rope_type": "linear", "rope_theta": theta, "factor": meta.number("rope.scaling.factor")}
    raise ModelError(
        f"The GGUF file '{meta.file.path.name}' scales its rotary embedding by '{scaling}', "
        "and only 'linear' is read from GGUF.",
        hint="use the model's safetensors folder",
    )


def _llama3_rope(meta: Metadata, theta: float) -> Config:
    """Llama 3.1's scaling, found again in the stored factors (all published models share the constants)."""
    import torch

    from optpipe.weights.gguf import GgufWeight

    stored = GgufWeight(meta.file.path, meta.file.tensors["rope_freqs.weight"]).load().double().flatten()
    factor, low, high, context = round(float(stored.max()), 3), 1.0, 4.0, 8192
    exponent = torch.arange(stored.numel(), dtype=torch.float64) / stored.numel()
    wavelength = 2 * math.pi * theta**exponent
    smooth = ((context / wavelength - low) / (high - low)).clamp(0.0, 1.0)
    if not torch.allclose(1 / ((1 - smooth) / factor + smooth), stored, rtol=1e-3):
        raise ModelError(
            f"The GGUF file '{meta.file.path.name}' has rotary factors that are not those of Llama 3.1.",
            hint="use the model's safetensors folder",
        )
    return {
        "rope_type": "llama3",
        "rope_theta": theta,
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": context,
    }


def _llama(meta: Metadata) -> Config:
    config = _common(meta)
    if meta.get("expert_count"):
        raise ModelError(
            f"The GGUF file '{meta.file.path.name}' is a mixture of experts, which is not read from GGUF.",
            hint="use the model's safetensors folder",
        )
    rotary = meta.integer("rope.dimension_count", config["head_dim"])
    if rotary != config["head_dim"]:
        raise ModelError(f"The GGUF file rotates {rotary} of {config['head_dim']} dimensions of a head.")
    bias = "blk.0.attn_q.bias" in meta.file.tensors
    return config | {"rope_parameters": _rope(meta), "attention_bias": bias, "mlp_bias": False}


def _qwen(meta: Metadata) -> Config:
    return _common(meta) | {"rope_parameters": _rope(meta)}


def _gemma2(meta: Metadata) -> Config:
    config = _common(meta)
    wide = config["num_hidden_layers"] == 46  # Gemma-2-27B scales by hidden/heads, the others by the head
    scalar = config["hidden_size"] // config["num_attention_heads"] if wide else config["head_dim"]
    return config | {
        "rope_parameters": _rope(meta),
        "query_pre_attn_scalar": scalar,
        "sliding_window": meta.integer("attention.sliding_window", 4096),
        "attn_logit_softcapping": meta.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": meta.number("final_logit_softcapping", 30.0),
        "tie_word_embeddings": True,
    }


def _gemma3(meta: Metadata) -> Config:
    config = _common(meta)
    layers = config["num_hidden_layers"]
    wide = layers == 62  # Gemma-3-27B scales by hidden/heads, the others by the head
    scalar = config["hidden_size"] // config["num_attention_heads"] if wide else config["head_dim"]
    local = {"rope_type": "default", "rope_theta": meta.number("rope.freq_base_swa", 10000.0)}
    return config | {
        "rope_parameters": {"full_attention": _rope(meta, 1e6), "sliding_attention": local},
        "query_pre_attn_scalar": scalar,
        "sliding_window": meta.integer("attention.sliding_window", 1024),
        "layer_types": _layer_types(meta, layers),
        "hidden_activation": "gelu_pytorch_tanh",
    }


def _layer_types(meta: Metadata, layers: int) -> list[str]:
    """Which layers have a window: a list in newer files, every sixth without one in all others."""
    pattern = meta.get("attention.sliding_window_pattern")
    if isinstance(pattern, list) and len(pattern) == layers:
        windowed = [bool(one) for one in pattern]
    else:
        period = meta.integer("attention.sliding_window_pattern", 6)
        windowed = [bool((layer + 1) % period) for layer in range(layers)]
    return ["sliding_attention" if one else "full_attention" for one in windowed]


@dataclass(frozen=True)
class Architecture:
    """How one GGUF architecture differs from the others."""

    model_type: str
    model_class: str
    config: Callable[[Metadata], Config]
    norms: dict[str, str] = field(default_factory=lambda: _TWO_NORMS)
    permuted: bool = False  # rows of q and k are stored for interleaved rotation
    norm_shift: float = 0.0  # what to add to stored norms

    def names(self, layers: int) -> dict[str, str]:
        """Module path of the model to tensor name of the file, both without .weight or .bias."""
        one = _LAYER | self.norms
        return _TOP | {
            f"model.layers.{layer}.{here}": f"blk.{layer}.{there}"
            for layer in range(layers)
            for here, there in one.items()
        }


ARCHITECTURES = {
    "llama": Architecture("llama", "LlamaForCausalLM", _llama, permuted=True),
    "qwen2": Architecture("qwen2", "Qwen2ForCausalLM", _qwen),
    "qwen3": Architecture("qwen3", "Qwen3ForCausalLM", _qwen, _TWO_NORMS | _HEAD_NORMS),
    "gemma2": Architecture("gemma2", "Gemma2ForCausalLM", _gemma2, _FOUR_NORMS, norm_shift=-1.0),
    "gemma3": Architecture(
        "gemma3_text", "Gemma3ForCausalLM", _gemma3, _FOUR_NORMS | _HEAD_NORMS, norm_shift=-1.0
    ),
}


def architecture_of(file: GgufFile) -> Architecture:
    """The table entry of a file.

    Raises:
        ModelError: GGUF files of this architecture are not read.
    """
    name = file.architecture
    if name not in ARCHITECTURES:
        raise ModelError(
            f"GGUF files of the architecture '{name[:80]}' are not read, but {', '.join(ARCHITECTURES)} are.",
            hint=nearest(name, ARCHITECTURES) or "use the model's safetensors folder",
        )
    return ARCHITECTURES[name]


def gguf_config(file: GgufFile) -> Config:
    """The config.json that a file's metadata stands for."""
    kind = architecture_of(file)
    config = kind.config(Metadata(file))
    named = {"model_type": kind.model_type, "architectures": [kind.model_class]}
    return named | {key: value for key, value in config.items() if value is not None}
