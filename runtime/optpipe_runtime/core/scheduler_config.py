"""The limits of a scheduler, and the figures it gives."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from optpipe.errors import RequestError, nearest

from .policy import POLICIES

_COUNTS = (
    "num_blocks",
    "block_size",
    "max_num_seqs",
    "max_num_batched_tokens",
    "max_logit_rows",
)


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """The limits of a scheduler.

    Attributes:
        num_blocks: blocks of the cache.
        block_size: tokens a block.
        max_num_seqs: sequences that run at once.
        max_num_batched_tokens: tokens a step; every running sequence has at least one of them.
        long_prefill_token_threshold: tokens of one prompt a step while another is behind it; 0 for no cap;
            None caps prompts longer than the budget, at half of what is left of it.
        max_logit_rows: logit rows a step, which bounds the memory of the logits; one is every running
            sequence's.
        watermark: share of the blocks that must stay free when a sequence is admitted beside others.
        policy: "fcfs" (first come, first served) or "priority" (lower numbers first, then as they came).
        prefix_caching: whether blocks are found again by what they hold.

    Raises:
        RequestError: a limit is not a number that can work.
    """

    num_blocks: int
    block_size: int
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    long_prefill_token_threshold: int | None = None
    max_logit_rows: int = 1024
    watermark: float = 0.01
    policy: Literal["fcfs", "priority"] = "fcfs"
    prefix_caching: bool = True

    def __post_init__(self) -> None:
        for name in _COUNTS:
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise RequestError(
                    f"The scheduler's {name} must be a whole number of at least 1, got {value}."
                )
        threshold = self.long_prefill_token_threshold
        if threshold is not None and threshold < 0:
            raise RequestError(
                f"The scheduler's long_prefill_token_threshold must be at least 0, got {threshold}."
            )
        if not 0 <= self.watermark < 1:
            raise RequestError(
                f"The scheduler's watermark must be at least 0 and below 1, got {self.watermark}."
            )
        if self.policy not in POLICIES:
            raise RequestError(
                f"The scheduler knows no policy '{self.policy}', only {', '.join(POLICIES)}.",
                hint=nearest(self.policy, POLICIES),
            )

    @property
    def capacity(self) -> int:
        """Tokens that the whole cache holds."""
        return self.num_blocks * self.block_size

    @property
    def watermark_blocks(self) -> int:
        """Blocks that must stay free when a sequence is admitted beside others."""
        return math.ceil(self.watermark * self.num_blocks)

    @property
    def max_running(self) -> int:
        """Sequences that can run at once, each with a token and a logit row of its own in every step."""
        return min(self.max_num_seqs, self.max_num_batched_tokens, self.max_logit_rows)


@dataclass(frozen=True, slots=True)
class SchedulerStats:
    """A moment's figures.

    Attributes:
        running: sequences that run.
        waiting: sequences that wait, new or preempted.
        blocks_used: blocks that some sequence owns.
        blocks_cached: blocks that nobody owns and that the prefix cache can still find.
        blocks_free: blocks with nothing in them. The three add up to all blocks.
        prefix_queries: prompt tokens looked for in the prefix cache so far.
        prefix_hits: those of them that were found.
        preemptions: so far.
    """

    running: int
    waiting: int
    blocks_used: int
    blocks_cached: int
    blocks_free: int
    prefix_queries: int
    prefix_hits: int
    preemptions: int
