"""Decides before each step what is drafted for whom, and learns after it what that was worth."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .controller import Controller
from .proposer import Proposer

if TYPE_CHECKING:
    from ..core.request import Sequence as TokenSequence
    from ..core.scheduler import Outcome
    from ..core.step_plan import StepPlan


@dataclass(frozen=True, slots=True)
class SpeculationStats:
    """What speculation has done so far.

    Attributes:
        proposed: drafts that the model has checked, by position in the draft.
        accepted: those of them that were kept, by position.
        steps: sequences' steps that carried drafts.
    """

    proposed: tuple[int, ...]
    accepted: tuple[int, ...]
    steps: int


class Speculator:
    """A proposer under a controller.

    Args:
        proposer: guesses.
        controller: says how many guesses pay; by default one that adapts.
        end_tokens: ids that end a text; nothing is drafted behind one.
        clock: seconds, for the time that proposing takes.
    """

    def __init__(
        self,
        proposer: Proposer,
        controller: Controller | None = None,
        *,
        end_tokens: Collection[int] = (),
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        raise NotImplementedError

    def drafts(self, sequences: Iterable[TokenSequence], *, load: int = 0) -> dict[int, list[int]]:
        """Drafts for the next step, by sequence id; sequences without any are left out.

        Args:
            sequences: all that decode in the next step (those still in their prompt are skipped).
            load: tokens of prompts that the next step will run beside them, as far as is known.
        """
        raise NotImplementedError

    def observe(self, plan: StepPlan, outcomes: Sequence[Outcome], seconds: float) -> None:
        """Learn from a step that ran: call it after ``Scheduler.commit``, for every step.

        Args:
            outcomes: what was committed, one a step of the plan.
            seconds: from submitting the step to having sampled from it.
        """
        raise NotImplementedError

    def finish(self, sequence_id: int) -> None:
        """Let go of a sequence: call it for every one that ends without an outcome that says so (aborts)."""
        raise NotImplementedError

    def stats(self) -> SpeculationStats:
        """Counts since the start."""
        raise NotImplementedError
