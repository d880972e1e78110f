"""OpenVINO GenAI: its continuous batching pipeline, a step at a time.

Settings: ``cache``, the precision of its KV cache, u8 or bf16.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import openvino
import openvino_genai as genai
import protocol


class OpenVino:
    """A pipeline with room for 16 sequences."""

    packages = ("openvino-genai", "openvino")

    def __init__(self, given: dict[str, Any]) -> None:
        scheduler = genai.SchedulerConfig()
        scheduler.max_num_batched_tokens = 4096
        scheduler.max_num_seqs = 16
        scheduler.cache_size = 2  # GB
        scheduler.enable_prefix_caching = False
        scheduler.dynamic_split_fuse = False
        properties = {
            "INFERENCE_NUM_THREADS": given["threads"],
            "PERFORMANCE_HINT": given.get("hint", "LATENCY"),
            "KV_CACHE_PRECISION": given["cache"],
        }
        self._pipeline = genai.ContinuousBatchingPipeline(given["model"], scheduler, "CPU", properties)
        self._number = 0

    def prompt(self, tokens: int) -> float:
        handles = [self._add(protocol.tokens(tokens), 1)]
        begun = time.perf_counter()
        while not _all_read(handles):
            self._pipeline.step()
        seconds = time.perf_counter() - begun
        self._finish()
        return seconds

    def decode(self, batch: int, context: int, steps: int) -> float:
        handles = [self._add(protocol.tokens(context, s), steps + 1) for s in range(batch)]
        waiting = list(handles)
        while waiting:  # until each has its first token
            self._pipeline.step()
            waiting = [it for it in waiting if not it.can_read()]
        done = min(_count(handle) for handle in handles)
        assert done == 1, f"prompts were taken in one step, not {done}"
        begun = time.perf_counter()
        made = 0
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            made += 1
        seconds = time.perf_counter() - begun
        assert made == steps, f"{made} steps for {steps} tokens"
        return seconds

    def _add(self, ids: list[int], wanted: int) -> Any:
        config = genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = wanted, True, False
        self._number += 1
        return self._pipeline.add_request(self._number, openvino.Tensor(np.asarray([ids], np.int64)), config)

    def _finish(self) -> None:
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()


def _all_read(handles: list[Any]) -> bool:
    return all(handle.can_read() for handle in handles)


def _count(handle: Any) -> int:
    """How many tokens can be read."""
    return sum(len(output.generated_ids) for output in handle.read().values())


if __name__ == "__main__":
    protocol.serve(OpenVino)
