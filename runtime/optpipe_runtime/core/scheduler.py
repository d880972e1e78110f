"""Who runs in the next step, with how many tokens, in which blocks.

The scheduler keeps the books: a :class:`Line` of who waits and who runs, the :class:`BlockTables` of those
that run, a :class:`Planner` for the next step, and here what became of the last one.
"""

from __future__ import annotations

import collections.abc as abc
from types import MappingProxyType

from optpipe.errors import RequestError

from .ahead import plan_ahead, taken_up
from .block_tables import BlockTables
from .integrity import check_plan, check_sequence
from .line import Line
from .planner import Planner
from .policy import POLICIES
from .request import Sequence, Status
from .scheduler_config import SchedulerConfig, SchedulerStats
from .step_plan import Outcome, SequenceStep, StepPlan

__all__ = ["Scheduler", "SchedulerConfig", "SchedulerStats"]

NO_DRAFTS: abc.Mapping[int, abc.Sequence[int]] = MappingProxyType({})


class Scheduler:
    """Plans steps and commits what came of them, strictly in turn: plan, commit (or rollback), plan, …

    ``add``, ``abort``, ``stats`` and ``drop_prefix_cache`` may come between a plan and its commit.
    Not thread-safe: one thread owns it.
    """

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self._tables = BlockTables(config.num_blocks, config.block_size, prefix_caching=config.prefix_caching)
        self._line = Line(POLICIES[config.policy](), self._tables)
        self._planner = Planner(config, self._line, self._tables)
        self._out: StepPlan | None = None  # planned, not committed; then everything that runs is in it
        self._ahead: StepPlan | None = None  # the one after it
        self._ended = False  # whether a sequence has since the last plan was made
        self._aborted: set[int] = set()  # in the plan that is out

    @property
    def running(self) -> abc.Sequence[Sequence]:
        """The sequences that hold a place in the batch, first in line first. Do not keep it over a step."""
        return self._line.running

    @property
    def out(self) -> StepPlan | None:
        """The plan that is neither committed nor rolled back."""
        return self._out

    def decoding(self) -> list[Sequence]:
        """The running sequences that lack only their last token: those that drafts can help."""
        return [sequence for sequence in self._line.running if len(sequence.tokens) - sequence.computed == 1]

    def add(self, sequence: Sequence) -> None:
        """Put a new sequence in the line, and lower its ``max_len`` to what the whole cache can hold.

        So a sequence that outgrows the cache ends as one that reached its ``max_len`` ends: at commit.

        Raises:
            RequestError: the prompt is empty, or alone more than the whole cache holds.
        """
        assert sequence.id not in self._line.unfinished, f"{sequence} has the id of another"
        assert sequence.status is Status.WAITING and not sequence.blocks, f"{sequence} is not new"
        assert sequence.max_len >= sequence.prompt_len, f"{sequence.max_len = } < {sequence.prompt_len = }"
        capacity = self.config.capacity
        if not sequence.tokens:
            raise RequestError("The prompt has no tokens; at least one is needed.")
        if sequence.prompt_len > capacity:
            raise RequestError(
                f"The prompt has {sequence.prompt_len} tokens; the whole key-value cache holds {capacity}.",
                hint="give the cache more memory, or shorten the prompt",
            )
        sequence.max_len = min(sequence.max_len, capacity + 1)  # the last token is never run
        self._line.join(sequence)

    def abort(self, sequence_id: int) -> bool:
        """End a sequence at any moment; one that is in a step ends when the step is committed.

        Returns:
            False when no such sequence waits or runs, or it is being aborted already.
        """
        sequence = self._line.unfinished.get(sequence_id)
        if sequence is None or sequence_id in self._aborted:
            return False
        if sequence.status is Status.RUNNING and self._out is not None:
            self._aborted.add(sequence_id)
            return True
        self._line.leave(sequence)
        return True

    def plan(self, drafts: abc.Mapping[int, abc.Sequence[int]] = NO_DRAFTS) -> StepPlan | None:
        """The next step, or None when there is nothing to run.

        Args:
            drafts: guesses of the next tokens, by sequence id. They are cut to what budget, rows, ``max_len``
                and free blocks leave after everything else, and never cost another sequence its blocks.
        """
        assert self._out is None, "the plan before is neither committed nor rolled back"
        self._out = self._planner.plan(drafts)
        self._ended = False
        return self._out

    def plan_ahead(self) -> StepPlan | None:
        """The step after the one that is out; None when it has to wait for what that gives.

        Once the one that is out is committed, this is it, without the sequences that have ended: see ``out``.
        Its tokens are −1 − r, the token that row r of the step before gives.
        """
        assert self._out is not None and self._ahead is None, "only the step after the one that is out"
        if not self._would_admit():
            self._ahead = plan_ahead(self._out, self._tables)
        return self._ahead

    def drop_ahead(self) -> None:
        """Forget the step that was planned ahead: it could not be run."""
        if self._ahead is not None:
            for step in self._ahead.steps:
                self._tables.trim(step.sequence, step.begin)
        self._ahead = None

    def _would_admit(self) -> bool:
        """Whether a plan made now might let somebody in."""
        waiting, running = self._line.waiting, self._line.running
        if not waiting:
            return False
        if waiting[0].order < running[-1].order:
            return True
        full = len(running) >= self.config.max_running
        return not full and (self._ended or not self._planner.refused(waiting[0]))

    def commit(self, plan: StepPlan, outcomes: abc.Sequence[Outcome]) -> None:
        """Enter what a step gave: one outcome for each of ``plan.steps``, in their order.

        Tokens are appended, blocks of rejected drafts let go, full blocks made findable. A sequence that is
        finished, aborted or at its ``max_len`` gives up its blocks and is FINISHED. The outcome of an aborted
        sequence is not looked at.
        """
        assert plan is self._out, "this plan is not the one that is out"
        for step, outcome in zip(plan.steps, outcomes, strict=True):
            if step.sequence.id not in self._aborted:
                step.check(outcome)
        self._out = None
        ended = [
            step.sequence
            for step, outcome in zip(plan.steps, outcomes, strict=True)
            if step.sequence.id in self._aborted or self._enter(step, outcome)
        ]
        self._end(ended)
        if self._ahead is not None:
            self._out, self._ahead = taken_up(self._ahead), None

    def rollback(self, plan: StepPlan) -> None:
        """Undo a plan whose step failed: every sequence is as it was before, without the plan's blocks.

        A step that was planned ahead of it is forgotten.

        Who was admitted or preempted by it stays so. Afterwards the sequences can be aborted or planned
        again; aborts that came during the step are carried out.
        """
        assert plan is self._out, "this plan is not the one that is out"
        self._out = self._ahead = None
        for step in plan.steps:
            self._tables.trim(step.sequence)
        self._end([step.sequence for step in plan.steps if step.sequence.id in self._aborted])

    def lend(self, count: int) -> list[int]:
        """Up to ``count`` blocks that nobody owns, for writing into until they are given back.

        What the prefix cache kept in them is lost. They come back before anything else is asked for.
        """
        assert self._out is None, "the plan that is out may be given blocks that were free"
        blocks = self._tables.pool.allocate(min(count, self._tables.pool.available))
        assert blocks is not None, f"{count = } is more than there is"
        return blocks

    def give_back(self, blocks: abc.Iterable[int]) -> None:
        """End a loan."""
        self._tables.pool.release(blocks)

    def drop_prefix_cache(self) -> None:
        """Forget every cached block; what running sequences own stays theirs."""
        self._tables.cache.clear()

    def reset(self) -> None:
        """The cache's contents are lost: preempt everything that runs, and forget every cached block."""
        assert self._out is None, "the plan that is out is neither committed nor rolled back"
        while self._line.running:
            self._line.preempt_last()
        self._tables.cache.clear()

    def stats(self) -> SchedulerStats:
        """The figures of this moment."""
        pool, cache = self._tables.pool, self._tables.cache
        return SchedulerStats(
            running=len(self._line.running),
            waiting=len(self._line.waiting),
            blocks_used=pool.num_blocks - pool.available,
            blocks_cached=pool.idle,
            blocks_free=pool.available - pool.idle,
            prefix_queries=cache.queries,
            prefix_hits=cache.hits,
            preemptions=self._line.preemptions,
        )

    def check_integrity(self) -> None:
        """Verify every invariant, in time proportional to everything there is: for tests.

        Raises:
            AssertionError: one does not hold; the message has the values.
        """
        line = self._line
        line.check_integrity()
        assert len(line.running) <= self.config.max_running, f"{len(line.running)} run"
        steps = {step.sequence.id: step for step in self._out.steps} if self._out else {}
        ahead = {step.sequence.id: step for step in self._ahead.steps} if self._ahead else {}
        assert self._aborted <= steps.keys(), f"{self._aborted = } outside the plan"
        if self._out:
            check_plan(self._out, line.running, self.config)
        for sequence in line.unfinished.values():
            check_sequence(sequence, steps.get(sequence.id), self.config, ahead.get(sequence.id))
        self._tables.cache.check_integrity(line.running)

    def _enter(self, step: SequenceStep, outcome: Outcome) -> bool:
        """Enter what one sequence got → whether it is to end."""
        sequence, tokens = step.sequence, outcome.tokens
        computed = step.begin + len(step.tokens) - step.drafts
        if tokens:
            sequence.tokens += tokens
            computed += len(tokens) - 1  # the last was sampled, not run
        self._tables.enter(sequence, computed)
        if step.drafts:
            self._tables.trim(sequence)
        if sequence.prompt_rows:
            sequence.scored = max(sequence.scored, min(computed, sequence.prompt_len))
        return outcome.finished or (step.samples and len(sequence.tokens) >= sequence.max_len)

    def _end(self, ended: list[Sequence]) -> None:
        self._ended = self._ended or bool(ended)
        for sequence in ended:
            self._line.leave(sequence)
        self._aborted.clear()
