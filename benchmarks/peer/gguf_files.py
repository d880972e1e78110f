"""GGUF files with every matrix in a type that we choose, as llama.cpp and OpenVINO read them.

A model that came as a GGUF file is written anew with other types. The Llama shape gets a file of its own,
with the tokenizer of another model filled up with words that nobody uses: OpenVINO GenAI insists on one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from optpipe.weights.safetensors import safetensors_weights

HEADS = ("token_embd.weight", "output.weight")
COUNTED = ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.scores")
UNUSED = 5  # gguf.TokenType
FILE_TYPES = {"F16": 1, "Q4_0": 2, "Q8_0": 7}  # OpenVINO reads the type of the body here


def requantize(source: Path, target: Path, body: str, head: str) -> None:
    """Write a GGUF file anew: matrices as ``body``, embedding and LM head as ``head`` (Q4_0, Q8_0, F16)."""
    reader = gguf.GGUFReader(source)
    fields = dict(_fields(reader))
    tensors = ((it.name, gguf.quants.dequantize(it.data, it.tensor_type)) for it in reader.tensors)
    _write(target, fields, tensors, body, head)


def llama(folder: Path, tokenizer: Path, target: Path, body: str, head: str) -> None:
    """Write a Hugging Face folder of a Llama model as GGUF, with the tokenizer of another GGUF file."""
    config = json.loads((folder / "config.json").read_text())
    kept = {key: it for key, it in _fields(gguf.GGUFReader(tokenizer)) if key.startswith("tokenizer.")}
    _write(
        target,
        _llama_fields(config) | _filled(kept, config["vocab_size"]),
        _tensors(folder, config),
        body,
        head,
    )


def _fields(reader: gguf.GGUFReader) -> Iterator[tuple[str, tuple[Any, Any, Any]]]:
    """Name → value, its type, the type of its elements."""
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.file_type":
            yield name, (field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None)


def _llama_fields(config: dict[str, Any]) -> dict[str, tuple[Any, Any, Any]]:
    width = config["hidden_size"] // config["num_attention_heads"]
    whole = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "rope.dimension_count": width,
        "vocab_size": config["vocab_size"],
    }
    real = {
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "rope.freq_base": config["rope_parameters"]["rope_theta"],
    }
    kinds = gguf.GGUFValueType
    found: dict[str, tuple[Any, Any, Any]] = {"general.architecture": ("llama", kinds.STRING, None)}
    found |= {f"llama.{key}": (value, kinds.UINT32, None) for key, value in whole.items()}
    return found | {f"llama.{key}": (value, kinds.FLOAT32, None) for key, value in real.items()}


def _filled(fields: dict[str, tuple[Any, Any, Any]], vocab: int) -> dict[str, tuple[Any, Any, Any]]:
    """A tokenizer's fields with as many words as the model has rows."""
    found = dict(fields)
    for name in COUNTED:
        if name in fields:
            values, *kinds = fields[name]
            missing = range(len(values), vocab)
            words = [f"<|unused_{k}|>" for k in missing]
            filler = words if name == COUNTED[0] else [UNUSED if name == COUNTED[1] else 0.0] * len(missing)
            found[name] = ([*values, *filler], *kinds)
    return found


def _tensors(folder: Path, config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Names and values as llama.cpp has them: rope turns neighbours, so rows of q and k are interleaved."""
    weights: dict[str, Any] = {}
    for file in sorted(folder.glob("*.safetensors")):
        weights |= safetensors_weights(file)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for name, weight in weights.items():
        values = weight.load().float().numpy()
        for part, count in heads.items():
            if part in name:
                halves = values.reshape(count, 2, -1, values.shape[-1])
                values = halves.swapaxes(1, 2).reshape(values.shape)
        yield names.get_name(name, (".weight",)), values


def _write(
    target: Path,
    fields: dict[str, tuple[Any, Any, Any]],
    tensors: Iterator[tuple[str, Any]],
    body: str,
    head: str,
) -> None:
    unfinished = target.with_suffix(".part")
    architecture = fields["general.architecture"][0]
    writer = gguf.GGUFWriter(unfinished, architecture)
    for name, (value, kind, element) in fields.items():
        if name != "general.architecture":
            writer.add_key_value(name, value, kind, element)
    writer.add_file_type(FILE_TYPES[body])
    for name, values in tensors:
        wanted = head if name in HEADS else body
        kind = gguf.GGMLQuantizationType[wanted if values.ndim == 2 else "F32"]
        values = np.ascontiguousarray(values, np.float32)
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    unfinished.rename(target)
