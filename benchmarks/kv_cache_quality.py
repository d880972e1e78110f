"""What a cache of fewer bits costs: KL from the same artifact with a float32 cache, nats a token.

    python -m benchmarks.kv_cache_quality ARTIFACT [--windows 8] [--kv-dtype f8 --kv-dtype i8]

No GPU: the cuda target runs on the dialect's bodies in float32, and rounds keys and values as its kernels do
(tests hold the two together). So the cache is all that differs. Every token of a window of 512 reads the
cache for all tokens before it and itself, as in serving.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from optpipe.artifact import load_artifact
from optpipe.evaluate import Meter, evaluation_text, windows
from optpipe.targets.steps import one_sequence
from optpipe_kernels.cuda.target import CudaTarget

ROWS = 64  # of logits at once


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--windows", type=int, default=8, help="of 512 tokens")
    parser.add_argument("--kv-dtype", action="append", choices=("f8", "i8"))
    options = parser.parse_args()
    executor = CudaTarget().load_artifact(load_artifact(options.artifact), device="cpu", kernels="bodies")
    texts = windows(_encode(options.artifact), evaluation_text(), count=options.windows)
    for kv_dtype in options.kv_dtype or ("f8", "i8"):
        meter = Meter()
        for ids in texts:
            plain, rounded = (_logits(executor, ids, name) for name in (None, kv_dtype))
            meter.update(ids, _chunks(rounded), _chunks(plain))
        print(json.dumps({"kv_dtype": kv_dtype, **meter.result().to_dict()}), flush=True)


def _encode(folder: Path) -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def _logits(executor: Any, ids: torch.Tensor, kv_dtype: str | None) -> np.ndarray:
    """[T, V] of a window, through a cache of that dtype."""
    step = one_sequence(ids.numpy(), executor.cache_spec.block_size)
    executor.allocate(step.block_tables.shape[1], kv_dtype=kv_dtype)
    logits: np.ndarray = executor.submit(step).result().logits
    return logits


def _chunks(logits: np.ndarray) -> Iterator[torch.Tensor]:
    for begin in range(0, len(logits), ROWS):
        yield torch.from_numpy(logits[begin : begin + ROWS])


if __name__ == "__main__":
    main()
