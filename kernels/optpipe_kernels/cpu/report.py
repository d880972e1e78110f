"""A plan for people and for scripts: what ``optpipe inspect --plan`` and ``optpipe doctor DIR`` print."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from optpipe.errors import RequestError
from optpipe.program.program import Program
from optpipe.targets.steps import one_sequence

from .costs import Cost, Sizes, cost_of
from .executor import CpuExecutor
from .library import library
from .limits import Limits, measure
from .lowering.instruction import Segment
from .lowerings import Lowerings

_WARM_RUNS, _RUNS = 3, 21  # the median of which is shown


def describe(
    program: Program,
    *,
    tokens: int = 1,
    context: int = 128,
    planes: int = 2,
) -> dict[str, Any]:
    """A program's plan for one sequence's step, as JSON holds it. Needs no weights.

    Args:
        program: of a paged artifact.
        tokens: new tokens of the step.
        context: tokens of the sequence with the new ones.
        planes: of 8 bits that activations are rounded to; the cache is the one that goes with them.

    Raises:
        RequestError: there are fewer tokens in all than new ones, or none.
    """
    if not 1 <= tokens <= context:
        raise RequestError(f"A step has 1 to {context} of the {context} tokens of its context, got {tokens}.")
    lowerings = Lowerings(program, planes)
    plans = lowerings.plans(lowerings.kv_dtypes[0])
    sizes = Sizes(tokens, context)
    steps = [_facts(step, sizes) for step in plans.lowered.steps]
    return {
        "target": "cpu",
        "isa": library().isa,
        "step": {"tokens": tokens, "context": context},
        "bytes": sum(it["bytes"] for it in steps),
        "stored": sum(it["stored"] for it in steps),
        "operations": sum(it["operations"] for it in steps),
        "segments": [it for it in steps if "reason" in it],
        "steps": steps,
    }


def profiled(
    program: Program, executor: CpuExecutor, *, tokens: int = 1, context: int = 128, planes: int = 2
) -> dict[str, Any]:
    """As ``describe``, with measured seconds, and the fraction of the machine's limit that each step reaches.

    The executor's cache is gone afterwards.
    """
    report = describe(program, tokens=tokens, context=context, planes=planes)
    limits = measure(library(), executor.pool)
    fits = report["stored"] <= limits.cache_bytes
    seconds = np.median(_times(executor, tokens, context), axis=0) / 1e9
    for facts, spent in zip(report["steps"], seconds.tolist(), strict=True):
        facts["seconds"] = spent
        cost = Cost(facts["bytes"], facts["operations"], facts["numbers"], facts["stored"])
        least = least_seconds(cost, limits, fits)
        facts["of_limit"] = least / spent if spent > 0 else None
    report["threads"] = executor.pool.threads
    report["seconds"] = float(seconds.sum())
    report["limits"] = {
        "bytes_per_second": limits.memory,
        "cache_bytes_per_second": limits.cache,
        "cache_bytes": limits.cache_bytes,
        "int8_operations_per_second": limits.operations["int8"],
        "bfloat16_operations_per_second": limits.operations["bf16"],
        "float32_operations_per_second": limits.operations["f32"],
    }
    return report


def _facts(step: Any, sizes: Sizes) -> dict[str, Any]:
    segment = isinstance(step, Segment)
    kernel = step.node.op if isinstance(step, Segment) else step.kernel
    cost = cost_of(kernel, step, sizes)
    facts = {"kernel": kernel, "path": step.path, "bytes": cost.bytes, "operations": cost.operations}
    facts |= {"numbers": cost.numbers, "stored": cost.stored}
    return facts | ({"reason": step.reason} if segment else {})


def least_seconds(cost: Cost, limits: Limits, fits: bool) -> float:
    """What an instruction takes at least.

    Args:
        fits: whether all weights and cache of a step fit the last-level cache together, and so stay in it
            from step to step; else they come from memory. Activations were written a moment ago.
    """
    stored = cost.stored / (limits.cache if fits else limits.memory)
    near = (cost.bytes - cost.stored) / limits.cache
    return max(stored + near, cost.operations / limits.operations[cost.numbers])


def _times(executor: CpuExecutor, tokens: int, context: int) -> NDArray[np.int64]:
    """Nanoseconds [runs, steps] of every step of the plan, after some runs to warm up."""
    block = executor.cache_spec.block_size
    executor.allocate(-(-context // block))
    step = one_sequence(np.arange(tokens) % 2, block, context - tokens)
    for _ in range(_WARM_RUNS):
        executor.submit(step)
    executor.profile = True
    totals = [executor.step_times()]
    for _ in range(_RUNS):
        executor.submit(step)
        totals.append(executor.step_times())
    executor.profile = False
    return np.diff(totals, axis=0)
