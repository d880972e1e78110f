"""What a step costs beside the model: scheduler, arrays, sampler's bookkeeping, text, delivery to readers.

The executor returns at once, so that the time between two steps is the engine's own.

    python benchmarks/overhead.py              the table
    python benchmarks/overhead.py --write      into benchmarks/results/overhead.md and .json too
    python benchmarks/overhead.py --check      exit 1 when a limit is passed
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from report import write

from optpipe.targets.protocol import CacheSpec, MemoryNeeds, StepInputs, StepResult
from optpipe.testing.tokenizer import save_tokenizer
from optpipe_runtime.engine import Engine, EngineConfig
from optpipe_runtime.sampling import SamplingParams
from optpipe_runtime.tokenizer import load_tokenizer

LIMITS_MS = {1: 0.15, 32: 1.0}  # a step, by running sequences
VOCAB = 259


@dataclass(frozen=True)
class Done:
    value: StepResult

    def result(self) -> StepResult:
        return self.value


class Instant:
    """An executor that has always just finished; it notes when it was asked."""

    batch_invariant = True
    kv_dtypes = ("f32",)
    cache_spec = CacheSpec(16, ((1, 1, 1),))
    vocab_size = VOCAB

    def __init__(self) -> None:
        self.asked: list[tuple[float, int]] = []
        self._tokens = (np.arange(1 << 16) * 7 % 26 + 65).astype(np.int64)  # letters
        self._logits = np.random.default_rng(0).standard_normal((2048, VOCAB), dtype=np.float32)

    def block_bytes(self, kv_dtype: str | None = None) -> int:
        return 128

    def memory(self, *, tokens: int, rows: int) -> MemoryNeeds:
        return MemoryNeeds(0, 0)

    def allocate(self, num_blocks: int, *, kv_dtype: str | None = None) -> None:
        pass

    def submit(self, step: StepInputs, *, logits: bool = True) -> Done:
        self.asked.append((time.perf_counter(), len(step.token_ids)))
        rows = len(step.logit_rows)
        at = len(self.asked) % 1000
        values = self._logits[at : at + rows] if logits else None
        return Done(StepResult(self._tokens[at : at + rows], values))


@dataclass(frozen=True)
class Row:
    """One case.

    Attributes:
        sequences: that run.
        how: greedy or sampled.
        readers: how they are read: deltas by an event loop, or only the ends.
        step_ms, p90_ms: median and 90th percentile of the time from one step to the next.
        cpu_ms: CPU time of the process a step, readers included.
        limit_ms: that the median must stay under, or None.
    """

    sequences: int
    how: str
    readers: str
    step_ms: float
    p90_ms: float
    cpu_ms: float
    limit_ms: float | None


def measure(sequences: int, how: str, readers: str, tokens: int) -> Row:
    """Run ``sequences`` requests together and time the steps in which all of them decode."""
    executor = Instant()
    params = SamplingParams(
        temperature=0.0 if how == "greedy" else 0.8,
        top_p=1.0 if how == "greedy" else 0.9,
        seed=1,
        max_tokens=tokens,
        ignore_eos=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        save_tokenizer(Path(folder))
        tokenizer = load_tokenizer(Path(folder))
    config = EngineConfig(num_blocks=sequences * (tokens // 16 + 8), max_num_seqs=max(sequences, 1))
    with Engine.over(executor, tokenizer, config=config) as engine:
        prompts = [[65 + (i + j) % 26 for j in range(64)] for i in range(sequences)]
        cpu = time.process_time()
        if readers == "stream":
            asyncio.run(_stream(engine, prompts, params))
        else:
            engine.generate(prompts, params)
        cpu = time.process_time() - cpu
    times = [at for at, count in executor.asked if count == sequences]
    gaps = sorted(1000 * (b - a) for a, b in itertools.pairwise(times))
    cut = max(1, len(gaps) // 20)  # the first steps warm up, others may admit
    limit = LIMITS_MS.get(sequences) if how == "greedy" else None
    return Row(
        sequences,
        how,
        readers,
        round(statistics.median(gaps), 4),
        round(gaps[-2 * cut], 4),
        round(1000 * cpu / len(executor.asked), 4),
        limit,
    )


async def _stream(engine: Engine, prompts: list[list[int]], params: SamplingParams) -> None:
    async def read(prompt: list[int]) -> int:
        count = 0
        async for delta in engine.submit(prompt, params):
            count += len(delta.token_ids)
        return count

    counts = await asyncio.gather(*map(read, prompts))
    assert set(counts) == {params.max_tokens}, counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=1000, help="a sequence")
    parser.add_argument("--write", action="store_true", help="into benchmarks/results")
    parser.add_argument("--check", action="store_true", help="exit 1 when a limit is passed")
    arguments = parser.parse_args()
    cases = itertools.product((1, 8, 32, 64), ("greedy", "sampled"), ("stream", "ends"))
    rows = [measure(*case, arguments.tokens) for case in cases]
    print(f"{'sequences':>9} {'how':8} {'readers':8} {'ms/step':>9} {'p90':>9} {'CPU ms':>9} {'limit':>7}")
    for row in rows:
        limit = "" if row.limit_ms is None else f"{row.limit_ms:7.2f}"
        print(
            f"{row.sequences:9} {row.how:8} {row.readers:8} {row.step_ms:9.3f} {row.p90_ms:9.3f} "
            f"{row.cpu_ms:9.3f} {limit:>7}"
        )
    if arguments.write:
        note = (
            "The executor returns at once: what is left of a step is scheduler, arrays, sampling, text and "
            "delivery. Milliseconds a step: median, 90th percentile, and processor time of the process with "
            "its readers; the median must stay under `limit_ms`. Readers get every delta in an event loop "
            '("stream"), or only the ends.'
        )
        title, command = "What a step costs beside the model", "python benchmarks/overhead.py --write"
        write("overhead", title, command, note, {"A step": [asdict(row) for row in rows]})
    over = [row for row in rows if row.limit_ms is not None and row.step_ms > row.limit_ms]
    return int(bool(over) and arguments.check)


if __name__ == "__main__":
    sys.exit(main())
