"""Who runs in the next step, with how many tokens, in which blocks."""

from __future__ import annotations

import collections.abc as abc
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from .request import Sequence
from .step_plan import Outcome, StepPlan

NO_DRAFTS: abc.Mapping[int, abc.Sequence[int]] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """The limits of a scheduler.

    Attributes:
        num_blocks: blocks of the cache.
        block_size: tokens a block.
        max_num_seqs: sequences that run at once.
        max_num_batched_tokens: tokens a step; every running sequence has at least one of them.
        max_logit_rows: logit rows a step, which bounds the memory of the logits.
        watermark: share of the blocks that must stay free when a sequence is admitted beside others.
        policy: "fcfs" (first come, first served) or "priority" (lower numbers first, then as they came).
        prefix_caching: whether blocks are found again by what they hold.
        max_waiting: sequences that wait at once; more are refused.
    """

    num_blocks: int
    block_size: int
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    max_logit_rows: int = 1024
    watermark: float = 0.01
    policy: Literal["fcfs", "priority"] = "fcfs"
    prefix_caching: bool = True
    max_waiting: int = 4096


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


class Scheduler:
    """Plans steps and commits what came of them, strictly in turn: plan, commit (or rollback), plan, …

    Not thread-safe: one thread owns it.
    """

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config

    @property
    def running(self) -> abc.Sequence[Sequence]:
        """The sequences that hold a place in the batch, first in line first. Do not keep it over a step."""
        raise NotImplementedError

    def decoding(self) -> list[Sequence]:
        """The running sequences that lack only their last token: those that drafts can help."""
        raise NotImplementedError

    def add(self, sequence: Sequence) -> None:
        """Put a new sequence in the line, and lower its ``max_len`` to what the whole cache can hold.

        So a sequence that outgrows the cache ends as one that reached its ``max_len`` ends: at commit.

        Raises:
            CapacityError: too many are waiting.
            RequestError: the prompt alone is more than the whole cache holds.
        """
        raise NotImplementedError

    def abort(self, sequence_id: int) -> bool:
        """End a sequence at any moment; in the middle of a step it ends when the step is committed.

        Returns:
            False when no such sequence waits or runs.
        """
        raise NotImplementedError

    def plan(self, drafts: abc.Mapping[int, abc.Sequence[int]] = NO_DRAFTS) -> StepPlan | None:
        """The next step, or None when there is nothing to run.

        Args:
            drafts: guesses of the next tokens, by sequence id. They are cut to what budget, rows, ``max_len``
                and free blocks leave after everything else, and never cost another sequence its blocks.
        """
        raise NotImplementedError

    def commit(self, plan: StepPlan, outcomes: abc.Sequence[Outcome]) -> None:
        """Enter what a step gave: one outcome for each of ``plan.steps``, in their order.

        Tokens are appended, blocks of rejected drafts let go, full blocks made findable. A sequence that is
        finished, aborted or at its ``max_len`` gives up its blocks and is FINISHED. The outcome of an aborted
        sequence is dropped.
        """
        raise NotImplementedError

    def rollback(self, plan: StepPlan) -> None:
        """Undo a plan whose step failed: every sequence is as it was before, without the plan's blocks.

        Afterwards they can be aborted one by one or planned again; aborts that came during the step are done.
        """
        raise NotImplementedError

    def drop_prefix_cache(self) -> None:
        """Forget every cached block; what running sequences own stays theirs."""
        raise NotImplementedError

    def reset(self) -> None:
        """The cache's contents are lost: preempt everything that runs, and forget every cached block."""
        raise NotImplementedError

    def stats(self) -> SchedulerStats:
        """The figures of this moment."""
        raise NotImplementedError

    def check_integrity(self) -> None:
        """Verify every invariant, in time proportional to everything there is: for tests.

        Raises:
            AssertionError: one does not hold; the message has the values.
        """
        raise NotImplementedError
