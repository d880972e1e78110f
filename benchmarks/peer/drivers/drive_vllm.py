"""vLLM's CPU package in bfloat16: its engine in this process, step by step."""

from __future__ import annotations

import os
import time
from typing import Any

import protocol

given = protocol.arguments()
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"  # GB
os.environ["VLLM_CPU_OMP_THREADS_BIND"] = f"0-{given['threads'] - 1}"
os.environ["OMP_NUM_THREADS"] = str(given["threads"])  # otherwise it takes one
os.environ["VLLM_NO_USAGE_STATS"] = "1"

from vllm import LLM, SamplingParams  # noqa: E402

MOST = 16


class Vllm:
    """An engine with room for 16 sequences.

    Settings: ``eager``, whether its graph stays uncompiled.
    """

    packages = ("vllm-cpu", "torch")

    def __init__(self, given: dict[str, Any]) -> None:
        self._engine = LLM(
            given["model"],
            dtype="bfloat16",
            max_model_len=1024,
            max_num_seqs=MOST,
            max_num_batched_tokens=4096,
            enable_prefix_caching=False,
            enforce_eager=given.get("eager", False),
            skip_tokenizer_init=True,
        ).llm_engine
        self._number = 0

    def prompt(self, tokens: int) -> float:
        self._add(protocol.tokens(tokens), 1)
        begun = time.perf_counter()
        while self._engine.has_unfinished_requests():
            self._engine.step()
        return time.perf_counter() - begun

    def decode(self, batch: int, context: int, steps: int) -> float:
        names = [self._add(protocol.tokens(context, s), steps + 1) for s in range(batch)]
        counts = dict.fromkeys(names, 0)
        while min(counts.values()) < 1:
            counts |= self._step()
        left = sum(steps + 1 - it for it in counts.values())
        begun = time.perf_counter()
        while self._engine.has_unfinished_requests():
            counts |= self._step()
        seconds = time.perf_counter() - begun
        assert set(counts.values()) == {steps + 1}, f"{counts = }"
        return seconds * batch * steps / left

    def _step(self) -> dict[str, int]:
        """Tokens of each request that got some."""
        return {it.request_id: len(it.outputs[0].token_ids) for it in self._engine.step()}

    def _add(self, ids: list[int], wanted: int) -> str:
        self._number += 1
        name = str(self._number)
        params = SamplingParams(temperature=0.0, max_tokens=wanted, ignore_eos=True, detokenize=False)
        self._engine.add_request(name, {"prompt_token_ids": ids}, params)
        return name


if __name__ == "__main__":
    protocol.serve(Vllm)
