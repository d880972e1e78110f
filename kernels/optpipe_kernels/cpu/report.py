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
from .lowering import lower
from .lowering.instruction import Segment
from .pack import quantized_bytes

_WARM_RUNS, _RUNS = 3, 21  # the median of which is shown


def describe(program: Program, *, tokens: int = 1, context: int = 128) -> dict[str, Any]:
    """A program's plan for one sequence's step, as JSON holds it. Needs no weights.

    Args:
        program: of a paged artifact.
        tokens: new tokens of the step.
        context: tokens of the sequence with the new ones.

    Raises:
        RequestError: there are fewer tokens in all than new ones, or none.
    """
    if not 1 <= tokens <= context:
        raise RequestError(f"A step has 1 to {context} of the {context} tokens of its context, got {tokens}.")
    plans = lower(program, quantized_bytes)
    sizes = Sizes(tokens, context)
    steps = [_facts(step, sizes) for step in plans.lowered.steps]
    return {
        "target": "cpu",
        "isa": library().isa,
        "step": {"tokens": tokens, "context": context},
        "bytes": sum(it["bytes"] for it in steps),
        "operations": sum(it["operations"] for it in steps),
        "segments": [it for it in steps if "reason" in it],
        "steps": steps,
    }


def profiled(
    program: Program, executor: CpuExecutor, *, tokens: int = 1, context: int = 128
) -> dict[str, Any]:
    """As ``describe``, with measured seconds, and the fraction of the machine's limit that each step reaches.

    The executor's cache is gone afterwards.
    """
    report = describe(program, tokens=tokens, context=context)
    limits = measure(library(), executor.pool)
    seconds = np.median(_times(executor, tokens, context), axis=0) / 1e9
    for facts, spent in zip(report["steps"], seconds.tolist(), strict=True):
        facts["seconds"] = spent
        least = _least(Cost(facts["bytes"], facts["operations"], facts["whole"]), limits)
        facts["of_limit"] = least / spent if spent > 0 else None
    report["threads"] = executor.pool.threads
    report["seconds"] = float(seconds.sum())
    report["limits"] = {
        "bytes_per_second": limits.bytes,
        "int8_operations_per_second": limits.whole,
        "float32_operations_per_second": limits.real,
    }
    return report


def _facts(step: Any, sizes: Sizes) -> dict[str, Any]:
    segment = isinstance(step, Segment)
    kernel = step.node.op if isinstance(step, Segment) else step.kernel
    cost = cost_of(kernel, step, sizes)
    facts = {"kernel": kernel, "path": step.path, "bytes": cost.bytes, "operations": cost.operations}
    return facts | {"whole": cost.whole} | ({"reason": step.reason} if segment else {})


def _least(cost: Cost, limits: Limits) -> float:
    return max(cost.bytes / limits.bytes, cost.operations / (limits.whole if cost.whole else limits.real))


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
