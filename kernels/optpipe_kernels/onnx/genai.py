"""``genai_config.json``: what onnxruntime-genai's own generator reads beside the model.

Source: the format of onnxruntime-genai 0.18, as its model builder writes it.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any, cast

from optpipe.artifact import Artifact

from .converter import head_width

_STANDARD = "llama"  # any decoder whose inputs are these is run as this one


def genai_config(
    artifact: Artifact, *, context: int, model: str, inputs: Collection[str]
) -> dict[str, Any] | None:
    """The file's content; None when the layers' caches differ, which the format cannot say.

    Args:
        context: the most positions of a sequence.
        model: the model file's name.
        inputs: of the model; one that no node reads is not among them.
    """
    caches = [it.value for it in artifact.program.inputs if it.kind == "cache"]
    shapes = {(cast("int", it.type.shape[2]), head_width(artifact.program, it)) for it in caches}
    if len(shapes) != 1:
        return None
    kv_heads, width = shapes.pop()
    config = artifact.config
    generation = json.loads(artifact.read("generation_config.json") or b"{}")
    special = {
        name: generation.get(name, config.get(name))
        for name in ("bos_token_id", "eos_token_id", "pad_token_id")
    }
    ends = special["eos_token_id"]
    if special["pad_token_id"] is None:
        special["pad_token_id"] = ends[0] if isinstance(ends, list) else ends
    names = {"key": "key_names", "value": "value_names"}
    decoder = {
        "session_options": {"log_id": "optpipe", "provider_options": []},
        "filename": model,
        "head_size": width,
        "hidden_size": config.get("hidden_size", config.get("n_embd")),
        "inputs": {
            **{it: it for it in ("input_ids", "attention_mask", "position_ids") if it in inputs},
            **{f"past_{name}": f"past_key_values.%d.{kind}" for kind, name in names.items()},
        },
        "outputs": {
            "logits": "logits",
            **{f"present_{name}": f"present.%d.{kind}" for kind, name in names.items()},
        },
        "num_attention_heads": config.get("num_attention_heads", config.get("n_head", kv_heads)),
        "num_hidden_layers": len(caches) // 2,
        "num_key_value_heads": kv_heads,
    }
    return {
        "model": {
            **{name: value for name, value in special.items() if value is not None},
            "context_length": context,
            "decoder": decoder,
            "type": _STANDARD,
            "vocab_size": artifact.program.outputs[0].type.shape[-1],
        },
        "search": {
            "do_sample": False,
            "max_length": context,
            "min_length": 0,
            "num_beams": 1,
            "num_return_sequences": 1,
            "past_present_share_buffer": True,
            "repetition_penalty": 1.0,
            "temperature": 1.0,
            "top_k": 1,
            "top_p": 1.0,
        },
    }
