"""Any order of requests, drafts, aborts, failures and resets, against a model: a dictionary of tokens."""

from __future__ import annotations

import copy
import random
from collections import Counter
from dataclasses import dataclass, field

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from optpipe.errors import RequestError
from optpipe_runtime.core import Outcome, Scheduler, SchedulerConfig, Sequence, SequenceStep, Status, StepPlan

from .driving import Memory
from .machines import run_machine

# Prompts are beginnings of these, so that prefixes are shared; what is drafted and sampled is 0 or 1.
FAMILIES = ([0] * 24, [0] * 5 + [1] * 19, [0, 1] * 12)

CONFIGS = st.builds(
    SchedulerConfig,
    num_blocks=st.integers(3, 14),
    block_size=st.integers(1, 4),
    max_num_seqs=st.integers(1, 6),
    max_num_batched_tokens=st.integers(1, 24),
    max_logit_rows=st.integers(1, 16),
    long_prefill_token_threshold=st.sampled_from([None, None, 0, 1, 5]),
    watermark=st.sampled_from([0.0, 0.1, 0.4]),
    policy=st.sampled_from(["fcfs", "priority"]),
    prefix_caching=st.sampled_from([True, True, False]),
)
SEEDS = st.integers(0, 1 << 30)


@dataclass
class Expected:
    """What the model knows of a sequence."""

    sequence: Sequence
    tokens: list[int]
    scored: list[int] = field(default_factory=list)
    aborted: bool = False


class SchedulerMachine(RuleBasedStateMachine):
    """Rules draw a seed where one decision more or less does not matter: that is quick, so there are more."""

    seen: Counter[str]
    plan: StepPlan | None = None
    books: Scheduler

    @initialize(config=CONFIGS)
    def begin(self, config: SchedulerConfig) -> None:
        self.books = Scheduler(config)
        self.memory = Memory(config.block_size)
        self.live: dict[int, Expected] = {}
        self.count = 0

    @rule(seed=SEEDS, sequences=st.integers(1, 4))
    def add(self, seed: int, sequences: int) -> None:
        chance = random.Random(seed)
        for _ in range(sequences):
            self.add_one(chance)

    @rule(seed=SEEDS, sequences=st.integers(1, 4))
    def add_more(self, seed: int, sequences: int) -> None:
        self.add(seed, sequences)

    def add_one(self, chance: random.Random) -> None:
        self.count += 1
        tokens = chance.choice(FAMILIES)[: chance.choice([0, 3, 6, 7, 8, 9, 12, 24])]
        sequence = Sequence(
            self.count,
            tokens,
            max_len=len(tokens) + chance.choice([0, 1, 30, 40]),
            arrival=self.count // 2,  # two of one request
            priority=chance.randint(0, 2),
            salt=chance.choice([b"", b"", b"", b"salt"]),
            prompt_rows=chance.random() < 0.2,
        )
        config = self.books.config
        try:
            self.books.add(sequence)
        except RequestError:
            assert not tokens or len(tokens) > config.num_blocks * config.block_size
        else:
            assert 0 < len(tokens) <= config.num_blocks * config.block_size
            self.live[sequence.id] = Expected(sequence, list(tokens))

    @precondition(lambda self: self.live)
    @rule(seed=SEEDS)
    def abort(self, seed: int) -> None:
        assert not self.books.abort(self.count + 1)
        number = random.Random(seed).choice(sorted(self.live))
        expected = self.live[number]
        inside = self.plan is not None and expected.sequence.status is Status.RUNNING
        assert self.books.abort(number) is not expected.aborted
        expected.aborted = True
        self.seen["aborted in a step" if inside else "aborted"] += 1
        if not inside:
            self.gone(number)

    def gone(self, number: int) -> None:
        sequence = self.live.pop(number).sequence
        assert sequence.status is Status.FINISHED and not sequence.blocks

    @precondition(lambda self: self.live)
    @rule(seed=SEEDS, steps=st.integers(4, 16))
    def run_some(self, seed: int, steps: int) -> None:
        for number in range(steps):
            if self.plan is None:
                self.make_a_plan(seed + number)
                self.agrees()
            if (seed + number) % 20 == 0 and self.live:
                self.abort(seed)
            if (seed + number) % 25 == 0 and self.plan is not None:
                self.fail()
            elif self.plan is not None:
                self.commit(seed - number)
            self.agrees()

    @precondition(lambda self: self.live)
    @rule(seed=SEEDS, steps=st.integers(4, 16))
    def run_more(self, seed: int, steps: int) -> None:
        self.run_some(seed, steps)

    @precondition(lambda self: self.plan is None)
    @rule(seed=SEEDS)
    def make_a_plan(self, seed: int) -> None:
        chance = random.Random(seed)
        drafts: dict[int, list[int]] = {}
        if chance.random() < 0.5:
            drafts = {
                one.id: [chance.randint(0, 1) for _ in range(chance.randint(0, 6))]
                for one in self.books.decoding()
            }
        before = copy.deepcopy(self.books) if any(drafts.values()) else None
        self.plan = self.books.plan(drafts)
        assert (self.plan is None) == (not self.live)
        if self.plan is None:
            return
        self.check_progress(self.plan)
        if before is not None:
            self.check_drafts_cost_nothing(before.plan(), self.plan, drafts)
        for step in self.plan.steps:
            self.memory.run(step)
            assert self.live[step.sequence.id].sequence is step.sequence
            self.seen["drafted"] += step.drafts > 0
            self.seen["found"] += step.begin > 0 and step.begin == step.sequence.cached
            self.seen["chunk"] += not step.samples
        self.seen["planned"] += 1
        self.seen["preempted"] += len(self.plan.preempted)

    def check_progress(self, plan: StepPlan) -> None:
        """The first in line runs in every step, so that it is done after as many as it has tokens."""
        number, first = min(self.live.items(), key=lambda item: item[1].sequence.order)
        assert any(step.sequence.id == number for step in plan.steps), f"{first.sequence} did not run"

    def check_drafts_cost_nothing(
        self, without: StepPlan | None, plan: StepPlan, drafts: dict[int, list[int]]
    ) -> None:
        assert without is not None and without.preempted == plan.preempted
        assert len(without.steps) == len(plan.steps)
        for bare, step in zip(without.steps, plan.steps, strict=True):
            known = len(step.tokens) - step.drafts
            assert (bare.sequence.id, bare.begin, bare.tokens) == (
                step.sequence.id,
                step.begin,
                step.tokens[:known],
            )
            assert list(step.tokens[known:]) == drafts.get(step.sequence.id, [])[: step.drafts]

    @precondition(lambda self: self.plan is not None)
    @rule(seed=SEEDS)
    def commit(self, seed: int) -> None:
        assert self.plan is not None
        chance = random.Random(seed)
        outcomes = [self.outcome(step, chance) for step in self.plan.steps]
        for step, outcome in zip(self.plan.steps, outcomes, strict=True):
            self.enter(step, outcome)
        self.books.commit(self.plan, outcomes)
        for step, outcome in zip(self.plan.steps, outcomes, strict=True):
            sequence, expected = step.sequence, self.live[step.sequence.id]
            full = step.samples and len(expected.tokens) >= sequence.max_len
            if expected.aborted or outcome.finished or full:
                self.gone(sequence.id)
        self.plan = None

    def outcome(self, step: SequenceStep, chance: random.Random) -> Outcome:
        finished = chance.random() < 0.01
        if self.live[step.sequence.id].aborted and chance.random() < 0.5:
            return Outcome()
        if not step.samples or len(step.sequence.tokens) == step.sequence.max_len:
            return Outcome((), finished)
        accept = chance.randint(0, step.drafts)
        drafts = step.tokens[len(step.tokens) - step.drafts :]
        if finished and chance.random() < 0.5:
            return Outcome(drafts[:accept], True)  # it ended with an accepted draft, or with nothing at all
        return Outcome((*drafts[:accept], chance.randint(0, 1)), finished)

    def enter(self, step: SequenceStep, outcome: Outcome) -> None:
        expected, sequence = self.live[step.sequence.id], step.sequence
        if expected.aborted:
            return
        end = step.begin + len(step.tokens) - step.drafts
        if sequence.prompt_rows:
            rows = range(end - (step.rows - step.drafts), end)
            expected.scored += [row for row in rows if row < sequence.prompt_len]
            if step.samples:
                assert expected.scored == list(range(sequence.prompt_len))
        else:
            assert step.rows == step.samples * (1 + step.drafts)
        expected.tokens += outcome.tokens

    @precondition(lambda self: self.plan is not None)
    @rule()
    def fail(self) -> None:
        assert self.plan is not None
        before = [(one.id, one.computed, len(one.tokens)) for one in self.books.running]
        for step in self.plan.steps:
            self.memory.spoil(step)
        self.books.rollback(self.plan)
        self.plan = None
        self.seen["failed"] += 1
        aborted = [number for number, expected in self.live.items() if expected.aborted]
        for number in aborted:
            self.gone(number)
        after = [(one.id, one.computed, len(one.tokens)) for one in self.books.running]
        assert after == [entry for entry in before if entry[0] not in aborted]

    @precondition(lambda self: self.live)
    @rule(chance=st.integers(0, 19))
    def lose_the_cache(self, chance: int) -> None:
        if chance == 0:
            self.books.drop_prefix_cache()
        elif chance == 1 and self.plan is None:
            self.books.reset()
            self.memory.slots.clear()

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "live"):
            return
        self.books.check_integrity()
        stats = self.books.stats()
        assert stats.running + stats.waiting == len(self.live)
        total = stats.blocks_used + stats.blocks_cached + stats.blocks_free
        assert total == self.books.config.num_blocks
        for expected in self.live.values():
            assert expected.sequence.tokens == expected.tokens

    def teardown(self) -> None:
        """Whatever happened, everything left is done in as many steps as it may have tokens."""
        if not hasattr(self, "live"):
            return
        if self.plan is not None:
            self.books.rollback(self.plan)
        bound = sum(expected.sequence.max_len for expected in self.live.values())
        while (plan := self.books.plan()) is not None:
            assert bound > 0, f"no end in sight: {plan}"
            bound -= 1
            for step in plan.steps:
                self.memory.run(step)
            self.books.commit(plan, [self.last_answer(step) for step in plan.steps])
            self.books.check_integrity()
        assert self.books.stats().blocks_used == 0

    def last_answer(self, step: SequenceStep) -> Outcome:
        full = len(step.sequence.tokens) == step.sequence.max_len
        return Outcome((0,) if step.samples and not full else ())


def test_any_use_keeps_the_books() -> None:
    SchedulerMachine.seen = seen = Counter()
    run_machine(SchedulerMachine, steps=20_000)
    for event in (
        "planned",
        "chunk",
        "preempted",
        "found",
        "drafted",
        "aborted",
        "aborted in a step",
        "failed",
    ):
        assert seen[event] >= 60, f"the machine hardly ever got to {event!r}: {seen}"
