"""Which tokens run next, and where their keys and values live: plain integers, no model.

``request`` is a growing sequence, ``scheduler`` turns the sequences into one ``step_plan`` after another,
``policy`` says who goes first, ``block_pool`` counts the owners of cache blocks and ``prefix_cache`` finds
blocks again by what they hold. Nothing here imports torch or numpy, or knows of text, sampling or targets.

    scheduler = Scheduler(SchedulerConfig(num_blocks=1024, block_size=16))
    scheduler.add(Sequence(0, prompt, max_len=len(prompt) + 64))
    while (plan := scheduler.plan()) is not None:
        outcomes = ...  # run it, sample, one Outcome a step
        scheduler.commit(plan, outcomes)
"""

from .request import Sequence, Status
from .scheduler import Scheduler, SchedulerConfig, SchedulerStats
from .step_plan import Outcome, SequenceStep, StepPlan

__all__ = [
    "Outcome",
    "Scheduler",
    "SchedulerConfig",
    "SchedulerStats",
    "Sequence",
    "SequenceStep",
    "Status",
    "StepPlan",
]
