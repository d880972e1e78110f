"""Decides before each step what is drafted for whom, and learns after it what that was worth."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from statistics import median_low

from ..core.request import Sequence as TokenSequence
from ..core.request import Status
from ..core.step_plan import Outcome, StepPlan
from .acceptance import Acceptance
from .controller import Controller, Terms
from .proposer import Ask, Proposer

log = logging.getLogger(__name__)

MEMORY = 0.85  # of a sequence's acceptance: about 7 drafts
SHARED_MEMORY = 0.95  # of all sequences' together: about 20
FILL_MEMORY = 0.9  # of whether a proposer has anything to say
LONGEST_SLEEP = 16  # tokens, after which a sequence that drafts do not help is looked at again
PAUSE, LONGEST_PAUSE = 1.0, 300.0  # seconds without a proposer that failed; each failure in a row doubles it
LOOK = 2  # drafts that a look asks for where each costs


@dataclass(frozen=True, slots=True)
class SpeculationStats:
    """What speculation has done so far.

    Attributes:
        proposer: its name.
        proposed: drafts that the model has checked, by position in the draft.
        accepted: those of them that were kept, by position.
        steps: sequences' steps that carried drafts.
        looks: proposals that were only compared with what came, at no cost to the model.
        seconds: that proposing took.
        failures: times that the proposer raised.
    """

    proposer: str
    proposed: tuple[int, ...]
    accepted: tuple[int, ...]
    steps: int
    looks: int
    seconds: float
    failures: int = 0


class Speculator:
    """A proposer under a controller.

    A sequence for which drafts do not pay is asleep: it is not asked about, but after 1, 2, 4, … tokens a
    proposal for it is made and only compared with the tokens that come (a look). One that would have been
    kept wakes it.

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
        self.proposer = proposer
        self.controller = controller or Controller()
        self._end_tokens = frozenset(end_tokens)
        self._clock = clock
        positions = self.controller.max_drafts
        self._acceptance = Acceptance(positions, memory=SHARED_MEMORY)
        self._fill = 0.5
        self._states: dict[int, _State] = {}
        self._unit_seconds: deque[float] = deque(maxlen=9)  # of an ask or a round
        self._failures = 0
        self._pause = PAUSE
        self._resume = -math.inf  # when a proposer that failed is asked again
        self._overhead = 0.0  # seconds spent since the last step
        self._proposed = [0] * positions
        self._accepted = [0] * positions
        self._steps = 0
        self._looks = 0
        self._seconds = 0.0

    def drafts(self, sequences: Iterable[TokenSequence], *, load: int = 0) -> dict[int, list[int]]:
        """Drafts for the next step, by sequence id; sequences without any are left out.

        Args:
            sequences: all that decode in the next step (those still in their prompt are skipped).
            load: tokens of prompts that the next step will run beside them, as far as is known.
        """
        begun = self._clock()
        ready = [s for s in sequences if len(s.tokens) - s.computed == 1]
        drafts: dict[int, list[int]] = {}
        if ready and begun >= self._resume:
            try:
                drafts = self._drafts(ready, load)
            except Exception:  # a draft model's executor may raise anything; the requests go on without
                log.exception("the proposer '%s' failed; it rests for %g s", self.proposer.name, self._pause)
                self._rest(begun)
            else:
                self._pause = max(PAUSE, self._pause / 2) if drafts else self._pause
        taken = self._clock() - begun
        self._overhead += taken
        self._seconds += taken
        return drafts

    def observe(self, plan: StepPlan, outcomes: Sequence[Outcome], seconds: float) -> None:
        """Learn from a step that ran: call it after ``Scheduler.commit``, for every step.

        Args:
            outcomes: what was committed, one a step of the plan.
            seconds: from submitting the step to having sampled from it.
        """
        drafts = decoding = produced = 0
        for step, outcome in zip(plan.steps, outcomes, strict=True):
            if not step.samples:
                continue
            decoding += 1
            produced += len(outcome.tokens)
            if step.drafts:
                drafts += step.drafts
                self._count(step.tokens[-step.drafts :], outcome.tokens)
            state = self._states.get(step.sequence.id)
            if state is not None:
                state.compare(outcome.tokens)
            if outcome.finished or step.sequence.status is Status.FINISHED:
                self.finish(step.sequence.id)
        self.controller.observe(
            tokens=plan.num_tokens,
            drafts=drafts,
            decoding=decoding,
            produced=produced,
            seconds=seconds,
            overhead=self._overhead,
        )
        self._overhead = 0.0

    def finish(self, sequence_id: int) -> None:
        """Let go of a sequence: call it for every one that ends without an outcome that says so (aborts)."""
        self._states.pop(sequence_id, None)
        self.proposer.finish(sequence_id)

    def stats(self) -> SpeculationStats:
        """Counts since the start."""
        return SpeculationStats(
            self.proposer.name,
            tuple(self._proposed),
            tuple(self._accepted),
            self._steps,
            self._looks,
            self._seconds,
            self._failures,
        )

    def _rest(self, now: float) -> None:
        """Ask no more for a while, and then as if every sequence were new."""
        self._failures += 1
        self._resume = now + self._pause
        self._pause = min(LONGEST_PAUSE, 2 * self._pause)
        for sequence_id in self._states:
            with contextlib.suppress(Exception):  # its state may be anything by now
                self.proposer.finish(sequence_id)
        self._states.clear()

    def _drafts(self, ready: list[TokenSequence], load: int) -> dict[int, list[int]]:
        by_round = self.proposer.cost_unit == "round"
        unit = median_low(self._unit_seconds) if self._unit_seconds else self._expected_unit(len(ready))
        terms = self.controller.terms(len(ready), load, unit / len(ready) if by_round else unit)
        if by_round and terms is not None:  # every draft costs, not every proposal
            terms = Terms(terms.least + terms.fee, 0.0)
        may_look = self.controller.may_look(len(ready), unit)
        if terms is None and not may_look:
            return {}
        asked, looks = self._choose(ready, terms, may_look)
        if not by_round:
            most = self.controller.most_asks(unit if self._unit_seconds else None)
            asked, looks = asked[:most], looks[: max(0, most - len(asked))]
        limits = [state.room(sequence, self.controller.max_drafts) for sequence, state in asked]
        if by_round:  # a draft costs as much to make as to check: decide before it is made
            offers = [state.acceptance.gains()[:n] for (_, state), n in zip(asked, limits, strict=True)]
            limits = self.controller.lengths(len(ready), load, offers, unit)
            looks += [
                pair
                for pair, limit in zip(asked, limits, strict=True)
                if not limit and may_look and len(pair[0].tokens) >= pair[1].look_at
            ]
            asked = [pair for pair, limit in zip(asked, limits, strict=True) if limit]
            limits = [limit for limit in limits if limit]
        most = LOOK if by_round else self.controller.max_drafts
        limits += [state.room(sequence, most) for sequence, state in looks]
        found = self._propose(asked + looks, limits, by_round)
        self._looks += len(looks)
        offers = [state.acceptance.gains()[: len(state.draft)] for _, state in asked]
        lengths = [len(o) for o in offers] if by_round else self.controller.lengths(len(ready), load, offers)
        return {
            sequence.id: draft[:length]
            for (sequence, _), draft, length in zip(asked, found, lengths, strict=False)
            if length
        }

    def _expected_unit(self, sequences: int) -> float:
        """Seconds of an ask or a round before one was timed; 0 where nothing is known."""
        share: float = getattr(self.proposer, "step_share", 0.0)
        return share * (self.controller.cost.seconds(sequences) or 0.0)

    def _choose(
        self, ready: list[TokenSequence], terms: Terms | None, may_look: bool
    ) -> tuple[list[tuple[TokenSequence, _State]], list[tuple[TokenSequence, _State]]]:
        """Whom to draft for, and at whom only to look."""
        asked, looks = [], []
        for sequence in ready:
            length = len(sequence.tokens)
            if sequence.max_len - length < 2:  # the step's own token is the last
                continue
            state = self._states.get(sequence.id)
            if state is None:
                state = _State(
                    Acceptance(self.controller.max_drafts, memory=MEMORY, parent=self._acceptance),
                    self._fill,
                    length,
                )
                self._states[sequence.id] = state
            if terms is not None and state.pays(terms):
                asked.append((sequence, state))
            elif may_look and length >= state.look_at:
                looks.append((sequence, state))
        return asked, looks

    def _propose(
        self, pairs: list[tuple[TokenSequence, _State]], limits: list[int], by_round: bool
    ) -> list[list[int]]:
        """Ask for all at once, and remember what was answered until it can be compared."""
        if not pairs:
            return []
        begun = self._clock()
        asks = [
            Ask(sequence.id, sequence.tokens, limit, sequence.prompt_len, sequence.salt, sequence.blocks)
            for (sequence, _), limit in zip(pairs, limits, strict=True)
        ]
        found = self.proposer.propose(asks)
        units = max(map(len, found)) if by_round else len(asks)
        if units:
            self._unit_seconds.append((self._clock() - begun) / units)
        for at, ((sequence, state), draft) in enumerate(zip(pairs, found, strict=True)):
            draft = found[at] = self._ended(draft[: limits[at]])
            state.remember(draft, len(sequence.tokens))
            self._fill += (bool(draft) - self._fill) * (1 - SHARED_MEMORY)
        return found

    def _ended(self, draft: list[int]) -> list[int]:
        """A draft up to the first token that ends the text."""
        for at, token in enumerate(draft):
            if token in self._end_tokens:
                return draft[: at + 1]
        return draft

    def _count(self, drafts: Sequence[int], tokens: Sequence[int]) -> None:
        self._steps += 1
        for position, draft in enumerate(drafts[: len(tokens)]):
            self._proposed[position] += 1
            if draft != tokens[position]:
                return
            self._accepted[position] += 1


class _State:
    """What is known of one sequence.

    Attributes:
        acceptance: of its drafts.
        fill: how often the proposer has something to say about it.
        draft: the newest proposal, run or not, as far as it has not been compared yet.
        look_at: the length of the text at which it is looked at next, when it sleeps.
    """

    __slots__ = ("_compared", "_sleep", "acceptance", "draft", "fill", "look_at")

    def __init__(self, acceptance: Acceptance, fill: float, length: int) -> None:
        self.acceptance = acceptance
        self.fill = fill
        self.draft: list[int] = []
        self.look_at = length
        self._compared = 0
        self._sleep = 1

    def pays(self, terms: Terms) -> bool:
        """Whether a proposal is expected to bring more than it costs."""
        if not terms.fee:
            return self.acceptance.gains()[0] >= terms.least
        gain = sum(gain - terms.least for gain in self.acceptance.gains() if gain > terms.least)
        return self.fill * gain >= terms.fee

    def room(self, sequence: TokenSequence, most: int) -> int:
        """Drafts that are of use: a step gives one token more than it keeps drafts."""
        return min(most, sequence.max_len - len(sequence.tokens) - 1)

    def remember(self, draft: list[int], length: int) -> None:
        """Take a new proposal for a text of that length."""
        self.draft, self._compared = draft, 0
        self.fill = self.fill * FILL_MEMORY + bool(draft) * (1 - FILL_MEMORY)
        if not draft:
            self._sleep = min(LONGEST_SLEEP, self._sleep * 2)
        self.look_at = length + self._sleep

    def compare(self, tokens: Sequence[int]) -> None:
        """Learn which of the proposed tokens came."""
        for token in tokens:
            if self._compared >= len(self.draft):
                return
            kept = self.draft[self._compared] == token
            self.acceptance.record(self._compared, kept)
            if self._compared == 0:
                self.look_at += (1 if kept else min(LONGEST_SLEEP, self._sleep * 2)) - self._sleep
                self._sleep = 1 if kept else min(LONGEST_SLEEP, self._sleep * 2)
            self._compared += 1
            if not kept:
                self.draft = []
