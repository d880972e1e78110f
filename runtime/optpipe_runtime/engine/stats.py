"""Numbers about an engine, for people and ``/metrics``. Counters only grow; gauges are of the last step."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Health:
    """Whether generation works.

    Attributes:
        ok: it makes progress, or has nothing to do.
        reason: what is wrong, or None.
        stalled: seconds since the last progress while there is work; 0 when there is none.
    """

    ok: bool
    reason: str | None
    stalled: float


@dataclass(frozen=True, slots=True)
class EngineStats:
    """See the module.

    Attributes:
        running, waiting: sequences (gauges).
        blocks_total, blocks_used, blocks_cached: of the KV cache (gauges); cached ones are free and still
            hold something a prompt may begin with.
        prefix_queries, prefix_hits: prompt tokens looked up in the prefix cache, and found (counters).
        preemptions: sequences that lost their blocks and were computed again (counter).
        steps, failed_steps: of the executor (counters).
        prompt_tokens, generated_tokens: computed and sampled (counters).
        requests: finished requests by finish reason (counters).
        step_seconds: time spent in steps (counter).
        draft_tokens, accepted_tokens: by place in the draft (counters).
    """

    running: int = 0
    waiting: int = 0
    blocks_total: int = 0
    blocks_used: int = 0
    blocks_cached: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    preemptions: int = 0
    steps: int = 0
    failed_steps: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    requests: tuple[tuple[str, int], ...] = ()
    step_seconds: float = 0.0
    draft_tokens: tuple[int, ...] = ()
    accepted_tokens: tuple[int, ...] = ()
