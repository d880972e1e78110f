"""The step after the one that is out, planned before anybody knows what that gives.

It can be said when every sequence of the step that is out samples one token: then each goes on with that
token, whatever it is, unless it reaches its ``max_len``. The token stands in the plan as −1 − r, the row of
the step that is out which gives it. A sequence that turns out to have ended is left out when the step becomes
the one that is out; what was computed for it is nobody's, and its blocks are free with the others.

Nothing is planned ahead at the cost of anyone: where somebody who waits might be let in, or blocks lack, the
next step is planned when its time has come.
"""

from __future__ import annotations

from .block_tables import BlockTables
from .request import Status
from .step_plan import SequenceStep, StepPlan


def plan_ahead(plan: StepPlan, tables: BlockTables) -> StepPlan | None:
    """The step after ``plan``, with blocks for it; None when it cannot be said, or there are too few.

    Args:
        plan: the one that is out.
        tables: gives the blocks.
    """
    if any(not step.samples or step.drafts or step.rows != 1 for step in plan.steps):
        return None
    going = [
        (row, step)
        for row, step in enumerate(plan.steps)
        if len(step.sequence.tokens) + 1 < step.sequence.max_len
    ]
    ends = [step.begin + len(step.tokens) + 1 for _, step in going]
    lacking = sum(
        max(0, tables.count(end) - len(step.sequence.blocks))
        for end, (_, step) in zip(ends, going, strict=True)
    )
    if not going or lacking > tables.pool.available:
        return None
    steps = []
    for end, (row, step) in zip(ends, going, strict=True):
        tables.extend(step.sequence, end)
        steps.append(SequenceStep(step.sequence, end - 1, (-1 - row,), 0, 1, True))
    return StepPlan(tuple(steps), len(steps), len(steps))


def taken_up(ahead: StepPlan) -> StepPlan | None:
    """What is left of a step that was planned ahead, now that its tokens are known; None when nobody is."""
    steps = tuple(
        step._replace(tokens=(step.sequence.tokens[step.begin],))
        for step in ahead.steps
        if step.sequence.status is Status.RUNNING
    )
    return StepPlan(steps, len(steps), len(steps)) if steps else None
