"""Numbers about an engine, for people and ``/metrics``. Counters only grow; gauges are of the last step."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..core import SchedulerStats
    from ..speculation import SpeculationStats


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


@dataclass(slots=True)
class Counters:
    """What the engine's thread counts; attributes as in :class:`EngineStats`."""

    steps: int = 0
    failed_steps: int = 0
    computed_tokens: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    step_seconds: float = 0.0
    ended: Counter[str] = field(default_factory=Counter)

    def step(self, tokens: int, seconds: float) -> None:
        """A step was made."""
        self.steps += 1
        self.computed_tokens += tokens
        self.step_seconds += seconds

    def end(self, reason: str) -> None:
        """A sequence has ended."""
        self.ended[reason] += 1


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
        computed_tokens: tokens that went through the model (counter).
        prompt_tokens, generated_tokens: of prompts that were finished, and sampled (counters).
        requests: sequences that ended, by finish reason (counters).
        step_seconds: time spent in steps (counter).
        draft_tokens, accepted_tokens: by place in the draft (counters).
        draft_failures: times that the proposer of drafts raised (counter).
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
    computed_tokens: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    requests: tuple[tuple[str, int], ...] = ()
    step_seconds: float = 0.0
    draft_tokens: tuple[int, ...] = ()
    accepted_tokens: tuple[int, ...] = ()
    draft_failures: int = 0

    @classmethod
    def of(
        cls, counters: Counters, gauges: SchedulerStats, queued: int, drafts: SpeculationStats | None
    ) -> EngineStats:
        """Put together what each part knows.

        Args:
            queued: sequences that had no step yet, those too that the scheduler has not seen.
        """
        return cls(
            running=gauges.running,
            waiting=max(queued, gauges.waiting),
            blocks_total=gauges.blocks_used + gauges.blocks_cached + gauges.blocks_free,
            blocks_used=gauges.blocks_used,
            blocks_cached=gauges.blocks_cached,
            prefix_queries=gauges.prefix_queries,
            prefix_hits=gauges.prefix_hits,
            preemptions=gauges.preemptions,
            steps=counters.steps,
            failed_steps=counters.failed_steps,
            computed_tokens=counters.computed_tokens,
            prompt_tokens=counters.prompt_tokens,
            generated_tokens=counters.generated_tokens,
            requests=tuple(sorted(counters.ended.items())),
            step_seconds=counters.step_seconds,
            draft_tokens=() if drafts is None else drafts.proposed,
            accepted_tokens=() if drafts is None else drafts.accepted,
            draft_failures=0 if drafts is None else drafts.failures,
        )
