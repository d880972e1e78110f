"""A model that needs no model: it answers steps, and remembers what it wrote into which cache slot."""

from __future__ import annotations

import collections.abc as abc
from typing import Any

from optpipe_runtime.core import Outcome, Scheduler, SchedulerConfig, Sequence, SequenceStep, StepPlan


def scheduler(num_blocks: int = 64, block_size: int = 4, **limits: Any) -> Scheduler:
    return Scheduler(SchedulerConfig(num_blocks=num_blocks, block_size=block_size, **limits))


def prompt(length: int, first: int = 1000) -> list[int]:
    return list(range(first, first + length))


def answer(step: SequenceStep, token: int = 7, accept: int = 0, finished: bool = False) -> Outcome:
    """What an engine would say: ``accept`` drafts and then ``token``, where the step samples."""
    sequence = step.sequence
    if not step.samples:
        return Outcome((), finished)
    if len(sequence.tokens) == sequence.max_len:
        return Outcome((), True)
    drafts = step.tokens[len(step.tokens) - step.drafts :]
    return Outcome((*drafts[:accept], token), finished)


def step(scheduler: Scheduler, drafts: dict[int, list[int]] | None = None, accept: int = 0) -> StepPlan:
    """Plan and commit one step, and check the books in between and after."""
    plan = scheduler.plan(drafts or {})
    scheduler.check_integrity()
    assert plan is not None
    scheduler.commit(plan, [answer(part, accept=min(accept, part.drafts)) for part in plan.steps])
    scheduler.check_integrity()
    return plan


def lengths(plan: StepPlan | None) -> dict[int, int]:
    """Tokens by sequence."""
    assert plan is not None
    return {step.sequence.id: len(step.tokens) for step in plan.steps}


class Memory:
    """The cache's contents: each slot holds a fingerprint of the salt and all tokens up to its own."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.slots: dict[tuple[int, int], int] = {}

    def fingerprints(self, salt: bytes, tokens: abc.Iterable[int]) -> list[int]:
        prints = [hash(salt)]
        for token in tokens:
            prints.append(hash((prints[-1], token)))
        return prints[1:]

    def slot(self, sequence: Sequence, position: int) -> tuple[int, int]:
        index, offset = divmod(position, self.block_size)
        return sequence.blocks[index], offset

    def run(self, step: SequenceStep) -> None:
        """Check that everything before the step is in the cache, then write the step's tokens."""
        sequence, begin = step.sequence, step.begin
        prints = self.fingerprints(sequence.salt, (*sequence.tokens[:begin], *step.tokens))
        for position, expected in enumerate(prints):
            slot = self.slot(sequence, position)
            if position < begin:
                assert self.slots.get(slot) == expected, f"{sequence}: wrong contents at {position = }"
            else:
                self.slots[slot] = expected

    def spoil(self, step: SequenceStep) -> None:
        """A step that fails in its middle has written anything at all where it may write."""
        for position in range(step.begin, step.begin + len(step.tokens)):
            self.slots[self.slot(step.sequence, position)] = -1
