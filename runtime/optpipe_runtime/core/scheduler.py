"""Who runs in the next step, with how many tokens, in which blocks.

There is no prefill phase and no decode phase. A sequence has tokens that are not computed yet: all of the
prompt at first, one when it decodes. Each step gives every running sequence at least one token and shares the
rest of one budget out in the policy's order, so long prompts run in chunks beside decoding.

A plan is made in this order; each part takes only what the parts before it left:

    1. make way   a waiting sequence that comes before a running one takes its place (priorities)
    2. running    first in line first; who finds no block preempts the last in line, at worst itself
    3. admission  from the head of the line, while all of a sequence fits above the watermark (counting what
                  running prompts have yet to get); nobody overtakes; not in a step that preempted
    4. drafts     what tokens, rows and blocks are left; never at anyone's cost

**Why it never livelocks.** Let S be the first in line of all unfinished sequences. If S waits, part 1
preempts from the end of the line until S fits; with nothing else running S always fits, because ``add``
refuses prompts larger than the cache and lowers ``max_len`` to it. So S runs after parts 1 and 3. Victims
are taken from the end of the line, where S is not, so S is never one: in part 2 it takes the blocks of all
others if it must, and the whole cache holds it. So every step computes at least one more token of S, and S
ends after at most ``max_len`` steps. Under "fcfs" finitely many came before a sequence: each gets its turn.
"""

from __future__ import annotations

import collections.abc as abc
from bisect import bisect_left, insort
from types import MappingProxyType

from optpipe.errors import CapacityError, RequestError

from .block_tables import BlockTables
from .integrity import check_line, check_plan, check_sequence
from .policy import POLICIES
from .request import Sequence, Status
from .scheduler_config import SchedulerConfig, SchedulerStats
from .step_plan import Outcome, SequenceStep, StepPlan

__all__ = ["Scheduler", "SchedulerConfig", "SchedulerStats"]

NO_DRAFTS: abc.Mapping[int, abc.Sequence[int]] = MappingProxyType({})


def _order(sequence: Sequence) -> tuple[int, ...]:
    return sequence.order


class Scheduler:
    """Plans steps and commits what came of them, strictly in turn: plan, commit (or rollback), plan, …

    ``add``, ``abort``, ``stats`` and ``drop_prefix_cache`` may come between a plan and its commit.
    Not thread-safe: one thread owns it.
    """

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self._policy = POLICIES[config.policy]()
        self._tables = BlockTables(config.num_blocks, config.block_size, prefix_caching=config.prefix_caching)
        self._unfinished: dict[int, Sequence] = {}
        self._waiting: list[Sequence] = []  # in the policy's order, as is the next
        self._running: list[Sequence] = []
        self._out: StepPlan | None = None  # planned, not committed; then everything that runs is in it
        self._aborted: set[int] = set()  # in the plan that is out
        self._refused = (-1, 0, 0)  # id, spare blocks and cached blocks of whom admission refused last
        self._preemptions = 0

    @property
    def running(self) -> abc.Sequence[Sequence]:
        """The sequences that hold a place in the batch, first in line first. Do not keep it over a step."""
        return self._running

    def decoding(self) -> list[Sequence]:
        """The running sequences that lack only their last token: those that drafts can help."""
        return [sequence for sequence in self._running if len(sequence.tokens) - sequence.computed == 1]

    def add(self, sequence: Sequence) -> None:
        """Put a new sequence in the line, and lower its ``max_len`` to what the whole cache can hold.

        So a sequence that outgrows the cache ends as one that reached its ``max_len`` ends: at commit.

        Raises:
            CapacityError: too many are waiting.
            RequestError: the prompt is empty, or alone more than the whole cache holds.
        """
        assert sequence.id not in self._unfinished, f"{sequence} has the id of another"
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
        if len(self._waiting) >= self.config.max_waiting:
            raise CapacityError(
                f"The queue is full: {len(self._waiting)} sequences are waiting.", hint="try again later"
            )
        sequence.max_len = min(sequence.max_len, capacity + 1)  # the last token is never run
        sequence.order = self._policy.order(sequence)
        self._unfinished[sequence.id] = sequence
        insort(self._waiting, sequence, key=_order)

    def abort(self, sequence_id: int) -> bool:
        """End a sequence at any moment; one that is in a step ends when the step is committed.

        Returns:
            False when no such sequence waits or runs, or it is being aborted already.
        """
        sequence = self._unfinished.get(sequence_id)
        if sequence is None or sequence_id in self._aborted:
            return False
        if sequence.status is Status.RUNNING and self._out is not None:
            self._aborted.add(sequence_id)
            return True
        line = self._waiting if sequence.status is Status.WAITING else self._running
        del line[bisect_left(line, sequence.order, key=_order)]
        self._end(sequence)
        return True

    def plan(self, drafts: abc.Mapping[int, abc.Sequence[int]] = NO_DRAFTS) -> StepPlan | None:
        """The next step, or None when there is nothing to run.

        Args:
            drafts: guesses of the next tokens, by sequence id. They are cut to what budget, rows, ``max_len``
                and free blocks leave after everything else, and never cost another sequence its blocks.
        """
        assert self._out is None, "the plan before is neither committed nor rolled back"
        preempted: list[int] = []
        if self._waiting:
            self._make_way(preempted)
        steps = self._run(preempted)
        if self._waiting and not preempted:
            self._admit_more(steps)
        if not steps:
            return None
        if drafts:
            self._add_drafts(steps, drafts)
        tokens = rows = 0
        for step in steps:
            tokens += len(step.tokens)
            rows += step.rows
        self._out = StepPlan(tuple(steps), tokens, rows, tuple(preempted))
        return self._out

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
        self._end_running(ended)

    def rollback(self, plan: StepPlan) -> None:
        """Undo a plan whose step failed: every sequence is as it was before, without the plan's blocks.

        Who was admitted or preempted by it stays so. Afterwards the sequences can be aborted or planned
        again; aborts that came during the step are carried out.
        """
        assert plan is self._out, "this plan is not the one that is out"
        self._out = None
        for step in plan.steps:
            self._tables.trim(step.sequence)
        self._end_running([step.sequence for step in plan.steps if step.sequence.id in self._aborted])

    def drop_prefix_cache(self) -> None:
        """Forget every cached block; what running sequences own stays theirs."""
        self._tables.cache.clear()

    def reset(self) -> None:
        """The cache's contents are lost: preempt everything that runs, and forget every cached block."""
        assert self._out is None, "the plan that is out is neither committed nor rolled back"
        while self._running:
            self._preempt_last()
        self._tables.cache.clear()

    def stats(self) -> SchedulerStats:
        """The figures of this moment."""
        pool, cache = self._tables.pool, self._tables.cache
        return SchedulerStats(
            running=len(self._running),
            waiting=len(self._waiting),
            blocks_used=pool.num_blocks - pool.available,
            blocks_cached=pool.idle,
            blocks_free=pool.available - pool.idle,
            prefix_queries=cache.queries,
            prefix_hits=cache.hits,
            preemptions=self._preemptions,
        )

    def check_integrity(self) -> None:
        """Verify every invariant, in time proportional to everything there is: for tests.

        Raises:
            AssertionError: one does not hold; the message has the values.
        """
        check_line(self._waiting, Status.WAITING)
        check_line(self._running, Status.RUNNING)
        known = {sequence.id: sequence for sequence in (*self._waiting, *self._running)}
        assert known == self._unfinished, f"{known = }, {self._unfinished = }"
        assert len(self._running) <= self.config.max_running, f"{len(self._running)} run"
        steps = {step.sequence.id: step for step in self._out.steps} if self._out else {}
        assert self._aborted <= steps.keys(), f"{self._aborted = } outside the plan"
        if self._out:
            check_plan(self._out, self._running, self.config)
        for sequence in known.values():
            check_sequence(sequence, steps.get(sequence.id), self.config)
        self._tables.cache.check_integrity(self._running)

    # -- the parts of a plan

    def _make_way(self, preempted: list[int]) -> None:
        """Let waiting sequences in that come before running ones, at the cost of the last in line."""
        waiting, running = self._waiting, self._running
        while waiting and running and waiting[0].order < running[-1].order:
            first = waiting[0]
            after = [sequence for sequence in running if sequence.order > first.order]
            if self._tables.pool.available + sum(len(s.blocks) for s in after) < self._tables.count(
                len(first.tokens)
            ):
                return  # not even all of them would do
            while not self._admit(first):
                if not running[-1].order > first.order:
                    return
                preempted.append(self._preempt_last())

    def _run(self, preempted: list[int]) -> list[SequenceStep]:
        """A step for everyone who runs and is not preempted, first in line first."""
        running = self._running
        steps: list[SequenceStep] = []
        tokens, rows = self.config.max_num_batched_tokens, self.config.max_logit_rows
        while len(steps) < len(running):
            after = len(running) - len(steps) - 1  # each of them keeps a token and a row
            step = self._step(running[len(steps)], tokens - after, rows - after, preempted)
            if step is None:
                break  # it preempted itself, so it was the last
            steps.append(step)
            tokens -= len(step.tokens)
            rows -= step.rows
        return steps

    def _admit_more(self, steps: list[SequenceStep]) -> None:
        """Admit from the head of the line while all of it fits and there are tokens for a start."""
        waiting = self._waiting
        tokens = self.config.max_num_batched_tokens - sum(len(step.tokens) for step in steps)
        rows = self.config.max_logit_rows - sum(step.rows for step in steps)
        while waiting and tokens > 0 and rows > 0:
            first = waiting[0]
            if not self._admit(first):
                return
            step = self._step(first, tokens, rows, [])
            assert step is not None, f"{first} was admitted without room"
            steps.append(step)
            tokens -= len(step.tokens)
            rows -= step.rows

    def _admit(self, sequence: Sequence) -> bool:
        """Let the head of the line run, with what the prefix cache holds of it, if all of it fits."""
        if len(self._running) >= self.config.max_running:
            return False
        found = self._find(sequence)
        if found is None:
            return False
        del self._waiting[0]
        insort(self._running, sequence, key=_order)
        self._tables.adopt(sequence, found)
        sequence.status = Status.RUNNING
        if not sequence.preemptions:
            sequence.cached = sequence.computed
            self._tables.cache.queries += sequence.prompt_len
            self._tables.cache.hits += sequence.cached
        return True

    def _find(self, sequence: Sequence) -> list[int] | None:
        """The cached blocks of a sequence, or None when the rest of it does not fit beside what runs.

        It fits when the watermark stays free once it and everyone who runs have all their blocks.
        """
        tables = self._tables
        if not self._running:
            return tables.cache.find(sequence)
        spare = tables.pool.available - self.config.watermark_blocks
        spare -= sum(tables.owed(other) for other in self._running)
        refused, spare_then, found_then = self._refused
        if sequence.id == refused and spare <= spare_then and not tables.cache.extends(sequence, found_then):
            return None  # looking its blocks up again in every step would cost
        found = tables.cache.find(sequence)
        shared = sum(tables.pool.owners(block) > 0 for block in found)
        if tables.count(len(sequence.tokens)) - shared <= spare:
            return found
        self._refused = (sequence.id, spare, len(found))
        return None

    def _step(self, sequence: Sequence, tokens: int, rows: int, preempted: list[int]) -> SequenceStep | None:
        """Its next tokens, at most ``tokens`` with at most ``rows`` rows (both at least 1), and their blocks.

        None when it had to preempt itself.
        """
        known, begin = sequence.tokens, sequence.computed
        count = len(known) - begin
        scoring = sequence.prompt_rows and sequence.scored < sequence.prompt_len
        if count > 1:
            count = min(count, tokens)
            if scoring:
                count = min(count, max(begin, sequence.scored) + rows - begin)
        if begin + count > len(sequence.blocks) * self.config.block_size:
            count = self._make_room(sequence, count, preempted)
            if not count:
                return None
        end = begin + count
        samples = end == len(known)
        wanted = max(end - max(begin, sequence.scored), 0) if scoring else int(samples)
        chunk = (known[begin],) if count == 1 else tuple(known[begin:end])
        return SequenceStep(sequence, begin, chunk, 0, wanted, samples)

    def _make_room(self, sequence: Sequence, count: int, preempted: list[int]) -> int:
        """Blocks for as many of the next ``count`` tokens as there is room for, and at least one.

        Returns:
            For how many; 0 when it had to preempt itself.
        """
        while not (room := self._tables.room(sequence, sequence.computed)):
            preempted.append(self._preempt_last())
            if sequence.status is Status.WAITING:
                return 0
        count = min(count, room)
        self._tables.extend(sequence, sequence.computed + count)
        return count

    def _add_drafts(self, steps: list[SequenceStep], drafts: abc.Mapping[int, abc.Sequence[int]]) -> None:
        """Append drafts to the steps that sample, as far as what is left over goes."""
        tokens = self.config.max_num_batched_tokens - sum(len(step.tokens) for step in steps)
        rows = self.config.max_logit_rows - sum(step.rows for step in steps)
        for index, step in enumerate(steps):
            sequence = step.sequence
            guesses = drafts.get(sequence.id)
            if not guesses or not step.samples:
                continue
            known = len(sequence.tokens)
            room = self._tables.room(sequence, known)
            count = min(len(guesses), tokens, rows, sequence.max_len - known - 1, room)
            if count <= 0:
                continue
            self._tables.extend(sequence, known + count)
            tokens -= count
            rows -= count
            run = step.tokens + tuple(guesses[:count])
            steps[index] = SequenceStep(sequence, step.begin, run, count, step.rows + count, True)

    # -- the parts of a commit

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

    def _end_running(self, ended: list[Sequence]) -> None:
        for sequence in ended:
            self._end(sequence)
        if ended:
            self._running = [sequence for sequence in self._running if sequence.status is Status.RUNNING]
            self._aborted.clear()

    def _end(self, sequence: Sequence) -> None:
        self._tables.let_go(sequence)
        sequence.status = Status.FINISHED
        del self._unfinished[sequence.id]

    def _preempt_last(self) -> int:
        """Back to the queue with the last in line, without its blocks → its id."""
        sequence = self._running.pop()
        self._tables.let_go(sequence)
        sequence.status = Status.WAITING
        sequence.preemptions += 1
        self._preemptions += 1
        insort(self._waiting, sequence, key=_order)
        return sequence.id
