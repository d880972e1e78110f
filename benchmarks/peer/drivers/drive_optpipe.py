"""optpipe's cpu target: steps of the executor, greedy; and what its matrix products alone would allow.

Settings: ``activations``, int8 or int16, and ``how``: "steps" calls the executor, as llama.cpp's driver calls
its decode; "engine" goes through the engine with its scheduler and sampler, as a program does that embeds
optpipe; "onnx" calls the executor of the onnx target.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import products
import protocol

from optpipe.artifact import load_artifact
from optpipe.targets.protocol import StepInputs
from optpipe_kernels.cpu.target import CpuTarget
from optpipe_kernels.onnx.target import OnnxTarget

MOST = 16  # sequences
LENGTH = 1024  # tokens of a sequence, at most


class Optpipe:
    """An artifact, its executor, and a cache for every sequence."""

    packages = ("optpipe",)

    def __init__(self, given: dict[str, Any]) -> None:
        artifact = load_artifact(Path(given["model"]))
        self._given, self._program = given, artifact.program
        options = {"threads": given["threads"], "activations": given["activations"]}
        if given["how"] == "onnx":
            self._executor: Any = OnnxTarget().load_artifact(artifact, slot_tokens=LENGTH, **options)
        else:
            self._executor = CpuTarget().load_artifact(artifact, **options)
        self._block = self._executor.cache_spec.block_size
        self._blocks = LENGTH // self._block
        self._engine = _engine(self._executor, given["model"]) if given["how"] == "engine" else None
        if self._engine is None:
            self._executor.allocate(MOST * self._blocks)

    def prompt(self, tokens: int) -> float:
        if self._engine is not None:
            return self._through_engine(1, tokens, 1)[0]
        begun = time.perf_counter()
        self._run([(0, protocol.tokens(tokens), 0)])
        return time.perf_counter() - begun

    def decode(self, batch: int, context: int, steps: int) -> float:
        if self._engine is not None:
            return self._through_engine(batch, context, steps + 1)[1]
        current = [self._run([(s, protocol.tokens(context, s), 0)])[0] for s in range(batch)]
        step = self._step([(s, [int(token)], context) for s, token in enumerate(current)])
        begun = time.perf_counter()
        for _ in range(steps):
            step.token_ids[:] = self._executor.submit(step, logits=False).result().token_ids
            for counted in (step.positions, step.slot_mapping, step.context_lens):
                counted += 1  # they are kept, as llama.cpp's driver keeps its batch
        return time.perf_counter() - begun

    def products(self, batch: int, tokens: int, seconds: float) -> dict[str, Any]:
        """What the linear instructions of a step take alone; see ``products``."""
        activations = self._given["activations"]
        return products.alone(self._executor, self._program, activations, batch, tokens, seconds)

    def profile(self, batch: int, context: int, tokens: int, runs: int) -> dict[str, Any]:
        """Milliseconds of a step by what its instructions do, and of the whole step as the caller sees it.

        Args:
            batch: sequences.
            context: tokens that each has already.
            tokens: new ones of each.
            runs: steps that are measured.
        """
        for sequence in range(batch if context else 0):
            self._run([(sequence, protocol.tokens(context, sequence), 0)])
        rows = [(s, protocol.tokens(tokens, s), context) for s in range(batch)]
        seconds = [self._timed(rows) for _ in range(runs + 1)]
        self._executor.profile = True
        totals = [self._executor.step_times()]
        for _ in range(runs + 1):
            self._run(rows, logits=True)
            totals.append(self._executor.step_times())
        self._executor.profile = False
        times = np.median(np.diff(totals, axis=0)[1:], axis=0)
        return products.by_kind(self._program, self._given["activations"], times) | {
            "step": 1e3 * float(np.median(seconds[1:]))
        }

    def _timed(self, rows: list[tuple[int, list[int], int]]) -> float:
        begun = time.perf_counter()
        self._run(rows)
        return time.perf_counter() - begun

    def machine(self) -> dict[str, Any]:
        """Bytes a second of memory and of the last-level cache, operations a second."""
        return products.machine(self._executor.pool)

    def facts(self) -> dict[str, Any]:
        """Instruction set and bytes of packed weights."""
        memory = self._executor.memory(tokens=1, rows=1)
        return {"isa": products.library().isa, "weight_bytes": memory.weights}

    def _run(self, rows: list[tuple[int, list[int], int]], logits: bool = False) -> Any:
        """One greedy step; the likeliest next of each sequence."""
        return self._executor.submit(self._step(rows), logits=logits).result().token_ids

    def _step(self, rows: list[tuple[int, list[int], int]]) -> StepInputs:
        """A step of (sequence, new tokens, tokens before them)."""
        lengths = [len(ids) for _, ids, _ in rows]
        positions = np.concatenate([np.arange(p, p + len(ids)) for _, ids, p in rows])
        owners = np.repeat([s for s, _, _ in rows], lengths)
        ends = np.cumsum(lengths)
        return StepInputs(
            token_ids=np.concatenate([np.asarray(ids, np.int64) for _, ids, _ in rows]),
            positions=positions.astype(np.int64),
            slot_mapping=(owners * self._blocks * self._block + positions).astype(np.int64),
            query_start=np.concatenate([[0], ends]).astype(np.int32),
            context_lens=np.asarray([p + len(ids) for _, ids, p in rows], np.int32),
            block_tables=np.stack([np.arange(self._blocks) + s * self._blocks for s, _, _ in rows]).astype(
                np.int32
            ),
            logit_rows=(ends - 1).astype(np.int64),
        )

    def _through_engine(self, batch: int, context: int, wanted: int) -> tuple[float, float]:
        """Seconds to the last sequence's first token, and from there to the last token of all."""
        from optpipe_runtime.sampling import SamplingParams

        params = SamplingParams(temperature=0.0, max_tokens=wanted, ignore_eos=True)
        return _stream(self._engine, [protocol.tokens(context, s) for s in range(batch)], params)


def _engine(executor: Any, folder: str) -> Any:
    from optpipe_runtime.engine import Engine, EngineConfig
    from optpipe_runtime.tokenizer import load_tokenizer

    config = EngineConfig(
        num_blocks=MOST * LENGTH // executor.cache_spec.block_size,
        max_num_seqs=MOST,
        prefix_caching=False,
        request_timeout=None,
    )
    return Engine.over(executor, load_tokenizer(Path(folder)), config=config).__enter__()


def _stream(engine: Any, prompts: list[list[int]], params: Any) -> tuple[float, float]:
    import asyncio

    async def read(prompt: list[int]) -> list[float]:
        times = []
        async for delta in engine.submit(prompt, params):
            times += [time.perf_counter()] * len(delta.token_ids)
        return times

    async def all_of_them() -> list[list[float]]:
        return list(await asyncio.gather(*map(read, prompts)))

    begun = time.perf_counter()
    times = asyncio.run(all_of_them())
    assert all(len(it) == params.max_tokens for it in times), "EOS is ignored"
    ready = max(it[0] for it in times)
    return ready - begun, max(it[-1] for it in times) - ready


if __name__ == "__main__":
    protocol.serve(Optpipe)
