"""transformers in bfloat16: forward by forward over its dynamic cache, scaled dot-product attention."""

from __future__ import annotations

import time
from typing import Any

import protocol
import torch
from transformers import AutoModelForCausalLM


class Transformers:
    """A model in eager mode."""

    packages = ("transformers", "torch")

    def __init__(self, given: dict[str, Any]) -> None:
        torch.set_num_threads(given["threads"])
        torch.set_grad_enabled(False)
        self._model = AutoModelForCausalLM.from_pretrained(
            given["model"], dtype=torch.bfloat16, attn_implementation="sdpa"
        ).eval()

    def prompt(self, tokens: int) -> float:
        ids = torch.tensor([protocol.tokens(tokens)])
        begun = time.perf_counter()
        self._model(ids, use_cache=True, logits_to_keep=1).logits[:, -1].argmax(-1).tolist()
        return time.perf_counter() - begun

    def decode(self, batch: int, context: int, steps: int) -> float:
        ids = torch.tensor([protocol.tokens(context, s) for s in range(batch)])
        out = self._model(ids, use_cache=True, logits_to_keep=1)
        begun = time.perf_counter()
        for _ in range(steps):
            current = out.logits[:, -1].argmax(-1, keepdim=True)
            out = self._model(current, past_key_values=out.past_key_values, use_cache=True)
        out.logits[:, -1].argmax(-1).tolist()
        return time.perf_counter() - begun


if __name__ == "__main__":
    protocol.serve(Transformers)
