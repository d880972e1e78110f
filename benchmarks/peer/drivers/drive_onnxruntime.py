"""ONNX Runtime GenAI: its generator over a folder that its own model builder wrote.

The folder's genai_config.json has the number of threads; the default halves the speed.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as genai
import protocol


class OnnxRuntime:
    """A model; each run has a generator of its own."""

    packages = ("onnxruntime-genai", "onnxruntime")

    def __init__(self, given: dict[str, Any]) -> None:
        config = genai.Config(given["model"])
        options = {"intra_op_num_threads": given["threads"], "inter_op_num_threads": 1}
        config.overlay(_session(options))
        self._model = genai.Model(config)
        written = json.loads((Path(given["model"]) / "genai_config.json").read_text())
        window = written["model"]["decoder"].get("sliding_window", {}).get("window_size", 0)
        self._least = (
            window + 64 if window > 0 else 0
        )  # tokens; its attention refuses a cache within the window

    def prompt(self, tokens: int) -> float:
        generator = self._generator(1, tokens + 8)
        begun = time.perf_counter()
        generator.append_tokens(np.asarray([protocol.tokens(tokens)], np.int32))
        generator.generate_next_token()
        return time.perf_counter() - begun

    def decode(self, batch: int, context: int, steps: int) -> float:
        generator = self._generator(batch, context + steps + 8)
        generator.append_tokens(np.asarray([protocol.tokens(context, s) for s in range(batch)], np.int32))
        generator.generate_next_token()
        begun = time.perf_counter()
        for _ in range(steps):
            generator.generate_next_token()
        seconds = time.perf_counter() - begun
        made = len(generator.get_sequence(0))
        assert made == context + steps + 1, f"{made} tokens: it stopped early"
        return seconds

    def _generator(self, batch: int, length: int) -> Any:
        length = max(length, self._least)
        params = genai.GeneratorParams(self._model)
        params.set_search_options(
            batch_size=batch,
            max_length=length,
            min_length=length,
            do_sample=False,
            past_present_share_buffer=True,
        )
        return genai.Generator(self._model, params)


def _session(options: dict[str, Any]) -> str:
    return json.dumps({"model": {"decoder": {"session_options": options}}})


if __name__ == "__main__":
    protocol.serve(OnnxRuntime)
