"""Tiny models as GGUF files, written the way llama.cpp's converter writes them."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from optpipe.testing.tiny import model_of

_SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
}
_ROPE = {"rope_type": "default", "rope_theta": 5000.0}
_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def tiny(architecture: str, **changes: Any) -> PreTrainedModel:
    sizes = _SIZES | {"tie_word_embeddings": False} | changes
    if architecture == "gemma3":
        both = {"full_attention": _ROPE, "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}
        extra = {"sliding_window": 8, "query_pre_attn_scalar": 16, "rope_parameters": both}
        return model_of(Gemma3TextConfig(**(sizes | {"tie_word_embeddings": True} | extra)))
    if architecture == "gemma2":
        extra = {"sliding_window": 8, "query_pre_attn_scalar": 16, "rope_parameters": _ROPE}
        return model_of(Gemma2Config(**(sizes | {"tie_word_embeddings": True} | extra)))
    kinds = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
    return model_of(kinds[architecture](**({"rope_parameters": _ROPE} | sizes)))


def write_gguf(
    path: Path,
    architecture: str,
    model: PreTrainedModel,
    tensors: dict[str, np.ndarray] | None = None,
    **more: Any,
) -> Path:
    """Write a model.

    Args:
        tensors: further tensors, under their GGUF names.
        more: further metadata keys under the architecture's name (a name starting with a dot is put under
            ``tokenizer.ggml`` instead); None leaves a usual key out.
    """
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    keys = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.freq_base": _ROPE["rope_theta"],
        "attention.sliding_window": getattr(config, "sliding_window", None),
    } | {key: value for key, value in more.items() if not key.startswith(".")}
    for key, value in keys.items():
        _put(writer, f"{architecture}.{key}", value)
    _tokenizer(writer, config.vocab_size, {key[1:]: value for key, value in more.items() if key[0] == "."})
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        writer.add_tensor(
            _name(architecture, name), _stored(architecture, config, name, tensor).numpy().copy()
        )
    for name, array in (tensors or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _put(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, list):
        writer.add_array(key, value)


def _tokenizer(writer: gguf.GGUFWriter, size: int, more: dict[str, Any]) -> None:
    """Bytes, two merges, and special tokens at the end: byte-level BPE as GPT-2 has it."""
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = [*sorted(ByteLevel.alphabet()), "he", "ll"]
    tokens += [f"<|{number}|>" for number in range(len(tokens), size)]
    kinds = [1] * 258 + [3] * (size - 258)
    keys = {"model": "gpt2", "pre": "gpt-2", "bos_token_id": 258, "eos_token_id": 259, "add_bos_token": True}
    for key, value in (keys | more).items():
        _put(writer, f"tokenizer.ggml.{key}", value)
    writer.add_array("tokenizer.ggml.tokens", tokens)
    writer.add_array("tokenizer.ggml.token_type", kinds)
    writer.add_array("tokenizer.ggml.merges", ["h e", "l l"])
    writer.add_string("tokenizer.chat_template", "{{ messages[0]['content'] }}")


def _name(architecture: str, name: str) -> str:
    path, _, suffix = name.rpartition(".")
    top = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    if path in top:
        return f"{top[path]}.{suffix}"
    _, _, layer, module = path.split(".", 3)
    four_norms = architecture.startswith("gemma")
    after = "post_attention_norm" if four_norms else "ffn_norm"
    leaf = after if module == "post_attention_layernorm" else _NAMES[module]
    return f"blk.{layer}.{leaf}.{suffix}"


def _stored(architecture: str, config: Any, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """llama.cpp's changes: q and k rows of Llama interleaved by halves of a head; Gemma's norms plus one."""
    if architecture == "llama" and (".q_proj." in name or ".k_proj." in name):
        heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
        halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
        return halves.swapaxes(1, 2).reshape(tensor.shape)
    if architecture.startswith("gemma") and name.endswith("norm.weight"):
        return tensor + 1
    return tensor


def llama3_factors(theta: float, dimensions: int) -> np.ndarray:
    """What llama.cpp stores for Llama 3.1's scaling: by how much each frequency is divided."""
    frequencies = 1.0 / theta ** (np.arange(0, dimensions, 2) / dimensions)
    factors = []
    for frequency in frequencies:
        wavelength = 2 * np.pi / frequency
        if wavelength < 8192 / 4.0:
            factors.append(1.0)
        elif wavelength > 8192 / 1.0:
            factors.append(8.0)
        else:
            smooth = (8192 / wavelength - 1.0) / (4.0 - 1.0)
            factors.append(1 / ((1 - smooth) / 8.0 + smooth))
    return np.array(factors, dtype=np.float32)
