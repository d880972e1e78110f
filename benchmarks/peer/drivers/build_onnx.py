"""ONNX Runtime GenAI's model builder, given Gemma 3's rope in the names that it reads.

transformers 5 has one set of rope parameters a kind of layer; the builder reads ``rope_theta`` and
``rope_local_base_freq`` and fails on the nested form. The command line is the builder's own.
"""

from __future__ import annotations

import runpy
from typing import Any

import transformers

_read = transformers.AutoConfig.from_pretrained


def flat(*positional: Any, **named: Any) -> Any:
    """What ``AutoConfig.from_pretrained`` gives, with flat names where its caller is the builder."""
    config = _read(*positional, **named)
    rope = getattr(config, "rope_parameters", None)
    if named.get("return_unused_kwargs") or not rope or "full_attention" not in rope:
        return config
    config.rope_theta = rope["full_attention"]["rope_theta"]
    config.rope_local_base_freq = rope["sliding_attention"]["rope_theta"]
    config.rope_parameters = dict(rope["full_attention"])
    return config


if __name__ == "__main__":
    transformers.AutoConfig.from_pretrained = flat
    runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__")
