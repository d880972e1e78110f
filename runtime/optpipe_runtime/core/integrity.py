"""What must hold of a scheduler's books at any moment. ``Scheduler.check_integrity`` calls it in tests."""

from __future__ import annotations

import collections.abc as abc

from .request import Sequence, Status
from .scheduler_config import SchedulerConfig
from .step_plan import SequenceStep, StepPlan


def check_plan(plan: StepPlan, running: abc.Sequence[Sequence], config: SchedulerConfig) -> None:
    """A plan that is out has one step for each that runs, and keeps the limits."""
    planned = sorted(step.sequence.id for step in plan.steps)
    assert planned == sorted(sequence.id for sequence in running), f"{planned = }, {running = }"
    assert plan.num_tokens == sum(len(step.tokens) for step in plan.steps), f"{plan.num_tokens = }"
    assert plan.num_tokens <= config.max_num_batched_tokens, f"{plan.num_tokens = } is over the budget"
    assert plan.num_rows == sum(step.rows for step in plan.steps), f"{plan.num_rows = }"
    assert plan.num_rows <= config.max_logit_rows, f"{plan.num_rows = } is over the limit"
    assert not set(plan.preempted) & set(planned), f"{plan.preempted = } are planned too"


def check_sequence(
    sequence: Sequence,
    step: SequenceStep | None,
    config: SchedulerConfig,
    ahead: SequenceStep | None = None,
) -> None:
    """One unfinished sequence: its counters agree, and it owns just the blocks that it needs now."""
    assert 0 < sequence.prompt_len <= len(sequence.tokens) <= sequence.max_len, (
        f"{sequence}: {sequence.max_len = }"
    )
    assert sequence.max_len <= config.capacity + 1, f"{sequence} may outgrow the cache: {sequence.max_len = }"
    assert 0 <= sequence.computed < len(sequence.tokens), f"{sequence} has nothing to run"
    assert len(set(sequence.blocks)) == len(sequence.blocks), f"{sequence} has a block twice"
    full = sequence.computed // config.block_size if config.prefix_caching else 0
    assert sequence.registered == full, f"{sequence}: {sequence.registered = }, {full = }"
    assert len(sequence.digests) <= len(sequence.tokens) // config.block_size, (
        f"{sequence} digests what is not full"
    )
    if sequence.status is Status.WAITING:
        assert not sequence.blocks and not sequence.computed, f"{sequence} waits with blocks"
        return
    end = sequence.computed if step is None else step.begin + len(step.tokens)
    if ahead is not None:
        assert ahead.begin == end, f"{sequence}: {ahead.begin = }, {end = }"
        end += 1
    blocks = -(-end // config.block_size)
    assert len(sequence.blocks) == blocks, f"{sequence} needs {blocks} blocks"
    if step is not None:
        check_step(sequence, step)


def check_step(sequence: Sequence, step: SequenceStep) -> None:
    """A step continues its sequence where that stands."""
    known = step.begin + len(step.tokens) - step.drafts
    assert step.begin == sequence.computed, f"{sequence}: {step.begin = }"
    assert known - step.begin >= 1, f"{sequence}: a step without a known token"
    assert list(step.tokens[: known - step.begin]) == sequence.tokens[step.begin : known], (
        f"{sequence}: {step.tokens = }"
    )
    assert step.samples == (known == len(sequence.tokens)), f"{sequence}: {step.samples = }, {known = }"
    assert not step.drafts or len(sequence.tokens) + step.drafts < sequence.max_len, (
        f"{sequence}: {step.drafts = }"
    )
    assert step.samples * (1 + step.drafts) <= step.rows <= len(step.tokens), f"{sequence}: {step.rows = }"
