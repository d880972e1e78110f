"""Speculation against an executor of stated step costs, on a clock that only moves when told to.

Requests are served in a closed loop: so many at once, the next one begins when one ends. Each has a prompt
that is run in one step, and a text that is known beforehand; the proposer knows it too, and errs as often as
the case says. A phase ends when it has given its tokens, and drops what still runs.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from optpipe_runtime.core.request import Sequence as TokenSequence
from optpipe_runtime.core.step_plan import Outcome, SequenceStep, StepPlan
from optpipe_runtime.speculation import Ask, Controller, Speculator

MS = 1e-3
WRONG = 1_000_000  # a token that no text has

StepSeconds = Callable[[int], float]  # tokens of a step → its seconds
Rate = Callable[[int, int], float]  # request, token of it → chance that a draft there is right


@dataclass(frozen=True)
class Phase:
    """Load that stays as it is for a while.

    Attributes:
        at_once: requests that run.
        tokens: to be generated in all.
        length: tokens of each request's text.
        prompt: tokens of each request's prompt.
    """

    at_once: int
    tokens: int
    length: int = 400
    prompt: int = 16


COSTS: dict[str, StepSeconds] = {
    "linear": lambda tokens: tokens * MS,
    "affine": lambda tokens: (10 + tokens) * MS,
    "flat": lambda tokens: 10 * MS,
    "knee": lambda tokens: (10 + max(0, tokens - 16) * 0.6) * MS,
    "cliff": lambda tokens: (10 if tokens == 1 else 30 + 0.1 * tokens) * MS,
    "tiles": lambda tokens: 10 * (1 + (tokens - 1) // 8) * MS,
}
LOADS: dict[str, list[Phase]] = {
    "1": [Phase(1, 1200)],
    "8": [Phase(8, 5000)],
    "64": [Phase(64, 16_000)],
    "1, 64, 1": [Phase(1, 800), Phase(64, 12_000, 200), Phase(1, 800)],
}
RATES: dict[str, Rate] = {
    "0": lambda request, at: 0.0,
    "0.3": lambda request, at: 0.3,
    "0.6": lambda request, at: 0.6,
    "0.8": lambda request, at: 0.8,
    "1": lambda request, at: 1.0,
    "1, then 0": lambda request, at: 1.0 if at < 200 else 0.0,
    "0, then 1": lambda request, at: 0.0 if at < 200 else 1.0,
    "every other": lambda request, at: 0.9 * (request % 2),
}


@dataclass
class Clock:
    """Tells the time; ``pass_by`` moves it."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


@dataclass
class Run:
    """What a simulation took.

    Attributes:
        seconds: that exactly the phases' tokens took: a last step that gave more is counted in part.
        drafts: that each step carried.
        given: tokens of the phase after each step.
        bounds: the first step of each phase, and the one behind its last.
    """

    seconds: float = 0.0
    drafts: list[int] = field(default_factory=list)
    given: list[int] = field(default_factory=list)
    bounds: list[tuple[int, int]] = field(default_factory=list)


class KnowingProposer:
    """Knows every text, and says the right token as often as it is told to.

    Args:
        seconds: that an ask takes (or a round, when ``cost_unit`` says so).
        fill: share of asks that are answered at all.
    """

    name = "knowing"

    def __init__(
        self,
        rate: Rate,
        clock: Clock,
        *,
        seconds: float = 0.0,
        fill: float = 1.0,
        cost_unit: Literal["ask", "round"] = "ask",
    ) -> None:
        self.cost_unit: Literal["ask", "round"] = cost_unit
        self._rate = rate
        self._clock = clock
        self._seconds = seconds
        self._fill = fill
        self._random = random.Random(1)
        self.finished: list[int] = []

    def propose(self, asks: Sequence[Ask]) -> list[list[int]]:
        drafts = [self._draft(ask) for ask in asks]
        units = len(asks) if self.cost_unit == "ask" else max(map(len, drafts))
        self._clock.pass_by(units * self._seconds)
        return drafts

    def finish(self, sequence_id: int) -> None:
        self.finished.append(sequence_id)

    def _draft(self, ask: Ask) -> list[int]:
        if self._random.random() >= self._fill:
            return []
        begin = len(ask.tokens) - ask.prompt_len
        draft = []
        for at in range(begin, begin + ask.limit):
            right = self._random.random() < self._rate(ask.sequence_id, at)
            draft.append(truth(ask.sequence_id, at) if right else WRONG)
        return draft


def truth(request: int, at: int) -> int:
    """Token ``at`` of a request's text."""
    return (request * 7919 + at * 104_729) % 50_000


def simulate(
    phases: Sequence[Phase],
    step_seconds: StepSeconds,
    *,
    rate: Rate = lambda request, at: 0.0,
    noise: float = 0.0,
    fill: float = 1.0,
    ask_seconds: float = 0.0,
    cost_unit: Literal["ask", "round"] = "ask",
    controller: Controller | None = None,
    plain: bool = False,
) -> Run:
    """Serve all phases, with speculation or ``plain``.

    Args:
        noise: standard deviation of a step's seconds, as a share of them.
    """
    clock, run, jitter = Clock(), Run(), random.Random(2)
    proposer = KnowingProposer(rate, clock, seconds=ask_seconds, fill=fill, cost_unit=cost_unit)
    speculator = None if plain else Speculator(proposer, controller, clock=clock)
    numbers = itertools.count()
    for phase in phases:
        running: list[TokenSequence] = []
        given, begun, first = 0, clock.now, len(run.drafts)
        while given < phase.tokens:
            new = [_request(next(numbers), phase) for _ in range(phase.at_once - len(running))]
            running += new
            load = sum(len(sequence.tokens) for sequence in new)
            drafts = speculator.drafts(running, load=load) if speculator else {}
            plan = _plan(running, drafts)
            seconds = step_seconds(plan.num_tokens) * max(0.5, jitter.gauss(1.0, noise))
            clock.pass_by(seconds)
            outcomes = [_commit(step) for step in plan.steps]
            if speculator:
                speculator.observe(plan, outcomes, seconds)
            running = [s for s, outcome in zip(running, outcomes, strict=True) if not outcome.finished]
            given += sum(len(outcome.tokens) for outcome in outcomes)
            run.drafts.append(sum(step.drafts for step in plan.steps))
            run.given.append(given)
        run.bounds.append((first, len(run.drafts)))
        run.seconds += (clock.now - begun) * phase.tokens / given
        for sequence in running:
            if speculator:
                speculator.finish(sequence.id)
    return run


def _request(number: int, phase: Phase) -> TokenSequence:
    return TokenSequence(number, range(phase.prompt), max_len=phase.prompt + phase.length)


def _plan(running: Sequence[TokenSequence], drafts: dict[int, list[int]]) -> StepPlan:
    steps = []
    for sequence in running:
        draft = drafts.get(sequence.id, [])
        tokens = (*sequence.tokens[sequence.computed :], *draft)
        steps.append(
            SequenceStep(sequence, sequence.computed, tokens, len(draft), 1 + len(draft), samples=True)
        )
    tokens_in_all = sum(len(step.tokens) for step in steps)
    return StepPlan(tuple(steps), tokens_in_all, sum(step.rows for step in steps))


def _commit(step: SequenceStep) -> Outcome:
    """What the model says to the drafts: its own tokens up to the first difference."""
    sequence = step.sequence
    sequence.computed = len(sequence.tokens)
    drafts = step.tokens[len(step.tokens) - step.drafts :]
    new: list[int] = []
    for draft in (*drafts, None):
        token = truth(sequence.id, len(sequence.tokens) + len(new) - sequence.prompt_len)
        new.append(token)
        if draft != token:
            break
    sequence.tokens.extend(new)
    sequence.computed += len(new) - 1
    return Outcome(tuple(new), finished=len(sequence.tokens) >= sequence.max_len)
