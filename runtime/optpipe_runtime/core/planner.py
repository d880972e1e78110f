"""What the next step is.

There is no prefill phase and no decode phase. A sequence has tokens that are not computed yet: all of the
prompt at first, one when it decodes. Each step gives every running sequence at least one token and shares the
rest of one budget out in the policy's order, so long prompts run in chunks beside decoding.

A plan is made in this order; each part takes only what the parts before it left:

    1. make way   a waiting sequence that comes before a running one takes its place (priorities)
    2. running    first in line first; who finds no block preempts the last in line, at worst itself
    3. admission  from the head of the line, while all of a sequence fits above the watermark (counting what
                  running prompts have yet to get); nobody overtakes; not in a step that preempted
    4. drafts     what tokens, rows and blocks are left; never at anyone's cost

While a prompt stands behind it, one with more to go than a whole budget gets half of what is left of the
budget, or ``long_prefill_token_threshold`` tokens: who comes after it does not wait for the end of it.

**Why it never livelocks.** Let S be the first in line of all unfinished sequences. If S waits, part 1
preempts from the end of the line until S fits; with nothing else running S always fits, because ``add``
refuses prompts larger than the cache and lowers ``max_len`` to it. So S runs after parts 1 and 3. Victims
are taken from the end of the line, where S is not, so S is never one: in part 2 it takes the blocks of all
others if it must, and the whole cache holds it. So every step computes at least one more token of S, and S
ends after at most ``max_len`` steps. Under "fcfs" finitely many came before a sequence: each gets its turn.
"""

from __future__ import annotations

import collections.abc as abc

from .block_tables import BlockTables
from .line import Line
from .request import Sequence, Status
from .scheduler_config import SchedulerConfig
from .step_plan import SequenceStep, StepPlan


class Planner:
    """Makes one plan after another of a line: admits, preempts, gives out blocks for the tokens to run."""

    def __init__(self, config: SchedulerConfig, line: Line, tables: BlockTables) -> None:
        self.config = config
        self._line = line
        self._tables = tables
        self._refused = (-1, 0, 0)  # id, spare blocks and cached blocks of whom admission refused last

    def plan(self, drafts: abc.Mapping[int, abc.Sequence[int]]) -> StepPlan | None:
        """The next step, or None when nobody is left; see :meth:`Scheduler.plan`."""
        line = self._line
        preempted: list[int] = []
        if line.waiting:
            self._make_way(preempted)
        steps = self._run(preempted)
        if line.waiting and not preempted:
            self._admit_more(steps)
        if not steps:
            return None
        if drafts:
            self._add_drafts(steps, drafts)
        tokens = rows = 0
        for step in steps:
            tokens += len(step.tokens)
            rows += step.rows
        return StepPlan(tuple(steps), tokens, rows, tuple(preempted))

    def refused(self, sequence: Sequence) -> bool:
        """Whether the last that there was no room for is this one."""
        return self._refused[0] == sequence.id

    def _make_way(self, preempted: list[int]) -> None:
        """Let waiting sequences in that come before running ones, at the cost of the last in line."""
        waiting, running = self._line.waiting, self._line.running
        while waiting and running and (first := waiting[0]).order < running[-1].order:
            if not self._would_fit(first):
                return
            while not self._admit(first):
                if running[-1].order < first.order:
                    return
                preempted.append(self._line.preempt_last())

    def _would_fit(self, sequence: Sequence) -> bool:
        """Whether it would if nobody after it ran. What is cached is not counted: rather no than yes."""
        tables = self._tables
        spare, watermark = tables.pool.available, 0
        for other in self._line.running:
            if other.order > sequence.order:
                spare += len(other.blocks)
            else:
                spare -= tables.owed(other)
                watermark = self.config.watermark_blocks
        return tables.count(len(sequence.tokens)) <= spare - watermark

    def _run(self, preempted: list[int]) -> list[SequenceStep]:
        """A step for everyone who runs and is not preempted, first in line first."""
        running = self._line.running
        steps: list[SequenceStep] = []
        tokens, rows = self.config.max_num_batched_tokens, self.config.max_logit_rows
        last = len(running) if self._may_admit() else self._last_prompt()
        while len(steps) < len(running):
            after = len(running) - len(steps) - 1  # each of them keeps a token and a row
            share = tokens - after
            if len(steps) < last:
                share = self._share(running[len(steps)], share)
            step = self._step(running[len(steps)], share, rows - after, preempted)
            if step is None:
                break  # it preempted itself, so it was the last
            steps.append(step)
            tokens -= len(step.tokens)
            rows -= step.rows
        return steps

    def _may_admit(self) -> bool:
        """Whether somebody waits for whom there is a place, if not blocks."""
        return bool(self._line.waiting) and len(self._line.running) < self.config.max_running

    def _last_prompt(self) -> int:
        """The place of the last running sequence that lacks more than one token; -1 when there is none."""
        running = self._line.running
        for place in range(len(running) - 1, -1, -1):
            if len(running[place].tokens) - running[place].computed > 1:
                return place
        return -1

    def _share(self, sequence: Sequence, tokens: int) -> int:
        """Of ``tokens`` that are left, those that a sequence may have while another prompt is behind it."""
        threshold = self.config.long_prefill_token_threshold
        if threshold is not None:
            return min(tokens, threshold or tokens)
        to_go = len(sequence.tokens) - sequence.computed
        return tokens if to_go <= self.config.max_num_batched_tokens else (tokens + 1) // 2

    def _admit_more(self, steps: list[SequenceStep]) -> None:
        """Admit from the head of the line while all of it fits and there are tokens for a start."""
        waiting = self._line.waiting
        tokens = self.config.max_num_batched_tokens - sum(len(step.tokens) for step in steps)
        rows = self.config.max_logit_rows - sum(step.rows for step in steps)
        while waiting and tokens > 0 and rows > 0:
            first = waiting[0]
            if not self._admit(first):
                return
            share = self._share(first, tokens) if self._may_admit() else tokens
            step = self._step(first, share, rows, [])
            assert step is not None, f"{first} was admitted without room"
            steps.append(step)
            tokens -= len(step.tokens)
            rows -= step.rows

    def _admit(self, sequence: Sequence) -> bool:
        """Let the head of the line run, with what the prefix cache holds of it, if all of it fits."""
        if len(self._line.running) >= self.config.max_running:
            return False
        found = self._find(sequence)
        if found is None:
            return False
        self._line.admit_first(found)
        return True

    def _find(self, sequence: Sequence) -> list[int] | None:
        """The cached blocks of a sequence, or None when the rest of it does not fit beside what runs.

        It fits when the watermark stays free once it and everyone who runs have all their blocks.
        """
        tables = self._tables
        if not self._line.running:
            return tables.cache.find(sequence)
        spare = tables.pool.available - self.config.watermark_blocks
        spare -= sum(tables.owed(other) for other in self._line.running)
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
            preempted.append(self._line.preempt_last())
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
