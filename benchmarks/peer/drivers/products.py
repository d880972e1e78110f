"""The limit of a cell: the linear instructions of the very plan that is measured, with nothing between them.

Instructions, operands and weights are the plan's own, so weights are read in the same order and from the same
places as in a step; everything else of the step (norms, attention, rope, cache) is left out.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from typing import Any

import numpy as np

from optpipe_kernels.cpu.library import Pool, library
from optpipe_kernels.cpu.lowering import lower
from optpipe_kernels.cpu.pack import quantized_bytes
from optpipe_kernels.cpu.plan import Plan
from optpipe_kernels.cpu.target import ACTIVATIONS

MEMORY, CACHE = 8 << 20, 4 << 20  # bytes that a measurement of bandwidth reads at a time, by 2 threads
LANES = {"avx512bf16": 16, "avx512vnni": 16, "avxvnni": 8, "avx2": 8, "scalar": 4}


def alone(
    executor: Any, program: Any, activations: str, batch: int, tokens: int, seconds: float
) -> dict[str, Any]:
    """Time them.

    Args:
        batch: sequences with a logit row each.
        tokens: of the step, all sequences together.
        seconds: that may be spent.

    Returns:
        ``seconds``, the median of a step; ``bytes`` of weights and ``operations`` on 8-bit numbers of a step.
    """
    lowered = lower(program, quantized_bytes, planes=ACTIVATIONS[activations])
    emitted = lowered.greedy
    chosen = [
        i for i, kernel in enumerate(emitted.kernels) if kernel.removeprefix("quant_").startswith("linear")
    ]
    only = replace(
        emitted,
        instructions=[emitted.instructions[i] for i in chosen],
        kernels=[emitted.kernels[i] for i in chosen],
        paths=[emitted.paths[i] for i in chosen],
        parts=[(0, len(chosen))],
    )
    plan = Plan(library(), only)
    try:
        plan.bind(executor._weights.arrays)
        counts = (tokens, batch, batch, 1, 1)
        plan.run(executor.pool, counts)
        times, end = [], time.perf_counter() + seconds
        while len(times) < 5 or time.perf_counter() < end:
            begun = time.perf_counter()
            plan.run(executor.pool, counts)
            times.append(time.perf_counter() - begun)
    finally:
        plan.close()
    planes = ACTIVATIONS[activations]
    return {"seconds": statistics.median(times), **_work(executor, lowered, planes, batch, tokens)}


def _work(executor: Any, plans: Any, planes: int, batch: int, tokens: int) -> dict[str, int]:
    """Bytes of weights that the products read and operations that they do: counted, not measured."""
    moved = operations = 0
    for step, likeliest in zip(plans.lowered.steps, plans.greedy.kernels, strict=True):
        kernel = step.kernel.removeprefix("quant_")
        if kernel.startswith("linear"):
            outputs, inputs = step.ints[:2]
            rows = batch if likeliest.endswith("argmax") else tokens
            halves = 2 if "gated" in kernel else 1
            operations += 2 * halves * outputs * inputs * rows * planes
            moved += executor._weights.arrays[step.reads[1].place].nbytes
    return {"bytes": moved, "operations": operations}


def by_kind(program: Any, activations: str, times: Any) -> dict[str, float]:
    """Milliseconds of the plan's instructions: products, attention, and everything else.

    Args:
        times: nanoseconds of each step of the lowering.
    """
    found = {"products": 0.0, "attention": 0.0, "other": 0.0}
    plans = lower(program, quantized_bytes, planes=ACTIVATIONS[activations])
    for step, spent in zip(plans.lowered.steps, times.tolist(), strict=True):
        kernel = getattr(step, "kernel", "").removeprefix("quant_")
        kind = (
            "products" if kernel.startswith("linear") else "attention" if "attention" in kernel else "other"
        )
        found[kind] += spent / 1e6
    return found


def machine(pool: Pool) -> dict[str, Any]:
    """Limits of this machine, by the kernels that ``optpipe inspect --plan --profile`` uses."""
    found, out = library(), np.zeros(64, np.float32)

    def bandwidth(part: int, parts: int) -> float:
        """Parts are read in turn, so that only what fits a cache together is read from one."""
        slices = np.split(np.ones(part * parts // 4, np.float32), parts)
        return part / _best(
            lambda: [found.call("machine_read", [it, out], pool=pool) for it in slices], 1.0, parts
        )

    repeats = 200_000
    operations = pool.threads * repeats * 12 * LANES[found.isa] * 8
    dots = _best(lambda: found.call("machine_dots", [out], (repeats,), pool=pool), 0.5)
    return {
        "memory_bytes_per_second": bandwidth(MEMORY, 32),
        "cache_bytes_per_second": bandwidth(CACHE, 3),
        "int8_operations_per_second": operations / dots,
    }


def _best(run: Any, seconds: float, parts: int = 1) -> float:
    shortest, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        begun = time.perf_counter()
        run()
        shortest = min(shortest, time.perf_counter() - begun)
    return shortest / parts
