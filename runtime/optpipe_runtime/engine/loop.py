"""The engine's thread: it takes requests in, plans, runs, samples, tells, and sleeps when there is no work.

One turn:  inbox → time limits → drafts → plan → step → tokens, text, ends → commit → wake the readers

Where the executor feeds a step with the tokens of the one before, the next step is under way before this
one's tokens are looked at: the device does not wait for the host. Then a turn is

           inbox → time limits → submit the step after the one under way → this one's tokens, …

A step that raises fails the requests that had a part in it and nobody else. A defect of the engine itself
fails everything that is open; the thread goes on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable

from optpipe.errors import EngineError, OptpipeError, TimeLimitError

from ..core import Outcome, Scheduler, StepPlan
from ..sampling import Sampled
from ..speculation import Speculator
from .batch import Batch
from .config import EngineConfig
from .deadlines import Deadlines
from .delivery import Mailbox, Outbox
from .gate import Gate
from .outputs import FinishReason
from .request import Choice, Gain, Request
from .runner import Flight, Runner
from .stats import Counters, EngineStats, Health

log = logging.getLogger("optpipe.engine")
_NOTHING = Outcome()


class Loop:
    """Owns the scheduler and everything that grows; other threads only write into its inbox.

    Args:
        scheduler, runner, batch, speculator: the parts of a step; no speculator, no drafts.
        gate: told who starts and who ends.
        config: limits.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        batch: Batch,
        speculator: Speculator | None,
        gate: Gate,
        config: EngineConfig,
    ) -> None:
        self._scheduler, self._runner, self._batch = scheduler, runner, batch
        self._speculator, self._gate, self._config = speculator, gate, config
        self._outbox = Outbox()
        self._changed = threading.Condition()
        self._inbox: list[Request | Mailbox] = []  # requests that come, mailboxes of those given up
        self._stopping = self._abandoned = False
        self._open: dict[str, Request] = {}
        self._choices: dict[int, Choice] = {}  # those that the scheduler has, by sequence id
        self._deadlines = Deadlines()
        self._out: StepPlan | None = None  # planned, neither committed nor rolled back
        self._flight: Flight | None = None  # of that plan, where it was submitted a turn early
        self._progress = time.monotonic()
        self._failures = 0  # steps, in a row
        self._reason: str | None = None  # what is wrong
        self._counters = Counters()
        self._gauges = scheduler.stats()
        self._thread = threading.Thread(target=self._live, name="optpipe-engine", daemon=True)
        self._thread.start()

    # For other threads

    def enter(self, request: Request) -> bool:
        """Hand over a request whose choices are made; False when the engine has stopped."""
        with self._changed:
            if self._stopping or self._abandoned:
                return False
            if not self._open and not self._inbox:
                self._progress = time.monotonic()
            self._inbox.append(request)
            self._changed.notify_all()
        return True

    def give_up(self, mailbox: Mailbox) -> None:
        """Abort the request of a mailbox, if it is there, before the next step."""
        with self._changed:
            self._inbox.append(mailbox)
            self._changed.notify_all()

    def stop(self, timeout: float) -> bool:
        """Abort what is open and end the thread; False when a step did not come back in time."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread is not threading.current_thread():
            self._thread.join(0 if self._abandoned else timeout)
        return not self._thread.is_alive()

    def abandon(self, error: OptpipeError) -> None:
        """Tell every reader that nothing more comes, although the thread is stuck in a step or ended."""
        with self._changed:
            self._abandoned = True
            requests = [*self._open.values(), *(it for it in self._inbox if isinstance(it, Request))]
        outbox = Outbox()
        for request in requests:
            request.mailbox.refuse(error, outbox)
        outbox.flush()
        self._gate.clear()

    def health(self) -> Health:
        """See ``Engine.health``."""
        busy = bool(self._open or self._inbox)
        stalled = max(0.0, time.monotonic() - self._progress) if busy else 0.0
        reason = self._reason
        if not self._thread.is_alive():
            reason = "the engine is closed" if self._stopping else reason or "the engine's thread ended"
        elif stalled > self._config.stall_timeout:
            reason = f"no step has ended for {stalled:.1f} s although there is work"
        return Health(reason is None, reason, stalled)

    def stats(self) -> EngineStats:
        """See ``Engine.stats``."""
        drafts = None if self._speculator is None else self._speculator.stats()
        return EngineStats.of(self._counters, self._gauges, self._gate.queued, drafts)

    # The engine's thread

    def _live(self) -> None:
        while self._wait():
            try:
                self._turn()
            except Exception as error:  # a defect of ours: no request may end the thread
                log.exception("the engine failed; every open request is given up")
                self._reason = f"the engine failed: {_what(error)}"
                if not self._recovered(EngineError(f"The engine failed: {_what(error)}.")):
                    return
            for mailbox in self._outbox.flush():  # their event loop is closed
                self.give_up(mailbox)
        self._drop_all("abort", None)
        self._outbox.flush()

    def _recovered(self, error: EngineError) -> bool:
        """Give up everything that is open; False when not even that works, and the engine must end."""
        try:
            self._drop_all("error", error)
        except Exception:
            log.exception("the engine cannot go on")
            self._gate.shut(error.message)
            self.abandon(error)
            return False
        return True

    def _wait(self) -> bool:
        """Sleep until there is work; False when the engine stops."""
        if self._choices and not self._inbox and not self._stopping:
            return True
        with self._changed:
            while not (self._choices or self._inbox or self._stopping):
                self._changed.wait()
            arrived, self._inbox = self._inbox, []
            self._open.update((it.id, it) for it in arrived if isinstance(it, Request))
        for item in arrived:
            self._arrive(item)
        return not self._stopping

    def _turn(self) -> None:
        self._expire(time.monotonic())
        if not self._choices:
            return
        begun = time.perf_counter()
        flight, self._flight = self._flight, None
        plan = self._plan() if flight is None else flight.plan
        submitted = time.perf_counter()
        try:
            flight = flight or self._runner.start(plan, self._choices)
            following = self._follow(flight)
            sampled = self._runner.finish(flight, self._choices)
        except Exception as error:  # the executor's: it may raise anything
            self._step_failed(plan, error)
            return
        outcomes, ends, failed = self._extend(plan, sampled)
        self._scheduler.commit(plan, outcomes)
        self._out = self._scheduler.out
        if following is not None and self._out is not None:
            self._flight = following.narrowed(self._out)
        seconds = time.perf_counter() - begun
        if self._speculator is not None:
            self._speculator.observe(plan, outcomes, time.perf_counter() - submitted)
        self._failures, self._reason = 0, None
        self._counters.step(plan.num_tokens, seconds)
        self._gauges = self._scheduler.stats()
        self._progress = time.monotonic()
        for choice, gain in ends:
            self._end(choice, gain.reason or "stop", stop=gain.stop, error=gain.error)
        for choice in failed:
            self._drop([choice.request], "error", choice.failure)

    def _follow(self, flight: Flight) -> Flight | None:
        """Submit the step after the one under way, where that can be said before its tokens are known."""
        if self._speculator is not None or not self._runner.may_follow(flight, self._choices):
            return None
        ahead = self._scheduler.plan_ahead()
        if ahead is None:
            return None
        try:
            return self._runner.start(ahead, self._choices, after=flight)
        except Exception:  # nothing is lost but time: the step is planned again when its turn comes
            log.exception("a step could not be submitted early")
            self._scheduler.drop_ahead()
            return None

    def _plan(self) -> StepPlan:
        # A plan may be empty when all that runs made way for a sequence that comes before it.
        plan = self._scheduler.plan(self._drafts()) or self._scheduler.plan()
        assert plan is not None, f"{len(self._choices)} sequences wait and none can run"
        self._out = plan
        started = 0
        for step in plan.steps:
            choice = self._choices[step.sequence.id]
            if choice.scheduled is None:
                choice.scheduled = time.monotonic()
                started += 1
        if started:
            self._gate.start(started)
        return plan

    def _drafts(self) -> dict[int, list[int]]:
        if self._speculator is None:
            return {}
        decoding = self._scheduler.decoding()
        if not decoding:
            return {}
        load = sum(len(it.tokens) - it.computed for it in self._scheduler.running) - len(decoding)
        load = min(load, self._config.max_num_batched_tokens - len(decoding))
        drafts = self._speculator.drafts(decoding, load=load)
        for sequence_id, tokens in drafts.items():
            grammar = self._choices[sequence_id].state.grammar
            if grammar is not None:  # the others would be refused
                drafts[sequence_id] = tokens[: grammar.valid_prefix(tuple(tokens))]
        return drafts

    def _extend(
        self, plan: StepPlan, sampled: list[Sampled]
    ) -> tuple[list[Outcome], list[tuple[Choice, Gain]], list[Choice]]:
        """Enter a step's tokens: text for the readers; outcomes for the scheduler, who ended, who failed."""
        outcomes: list[Outcome] = []
        ends: list[tuple[Choice, Gain]] = []
        failed: list[Choice] = []
        found = iter(sampled)
        generated = 0
        for step in plan.steps:
            choice = self._choices[step.sequence.id]
            one = next(found) if step.samples else None
            if choice.failure is not None:
                self._scheduler.abort(step.sequence.id)  # its outcome is not looked at
                failed.append(choice)
            if one is None or choice.failure is not None:
                outcomes.append(_NOTHING)
                continue
            if choice.first_token is None:
                self._begin(choice)
            gain = choice.extend(one)
            choice.request.mailbox.put(choice.index, gain.text, gain.tokens, gain.logprobs, self._outbox)
            generated += len(gain.tokens)
            if gain.reason is not None:
                ends.append((choice, gain))
            outcomes.append(Outcome(gain.tokens, gain.reason is not None))
        self._counters.generated_tokens += generated
        return outcomes, ends, failed

    def _begin(self, choice: Choice) -> None:
        """The prompt is computed: tell its log-probabilities, and let the other choices share it."""
        request = choice.request
        choice.first_token = time.monotonic()
        if choice.index:
            return
        self._counters.prompt_tokens += choice.sequence.prompt_len
        if request.prompt_logprobs is not None:
            request.mailbox.put_prompt(tuple(request.prompt_logprobs))
        for other in request.choices[1:]:
            self._add(other)

    def _step_failed(self, plan: StepPlan, error: Exception) -> None:
        log.error("a step failed: %s", error, exc_info=error)
        self._failures += 1
        self._counters.failed_steps += 1
        if self._failures >= self._config.max_failures:
            self._reason = f"the last {self._failures} steps failed: {_what(error)}"
        failure = EngineError(f"The step that this request was part of failed: {_what(error)}.")
        failure.__cause__ = error  # for --debug
        requests = {self._choices[it.sequence.id].request for it in plan.steps}
        self._drop(requests, "error", failure)

    # Requests that come and go

    def _arrive(self, item: Request | Mailbox) -> None:
        if isinstance(item, Mailbox):
            request = self._open.get(item.request_id)
            if request is not None and request.mailbox is item:  # not a later one of the same name
                self._drop([request], "abort", None)
            return
        if item.id not in self._open:
            return  # a message that came with it gave it up
        if item.mailbox.given_up:
            self._drop([item], "abort", None)
            return
        try:
            self._add(item.choices[0])
        except OptpipeError as error:
            self._drop([item], "error", error)
            return
        self._deadlines.add(item)

    def _add(self, choice: Choice) -> None:
        self._scheduler.add(choice.sequence)
        self._choices[choice.sequence.id] = choice

    def _expire(self, now: float) -> None:
        """Give up requests whose time is over."""
        for request in self._deadlines.due(now, self._open):
            message = f"The request took longer than its limit of {request.timeout:g} s."
            self._drop([request], "error", TimeLimitError(message))

    def _drop(self, requests: Iterable[Request], reason: FinishReason, error: OptpipeError | None) -> None:
        """End every open choice of some requests, wherever it is, between two steps or instead of one."""
        if self._out is not None:
            self._scheduler.rollback(self._out)
            self._out = self._flight = None
        ends = [choice for request in requests for choice in request.choices if choice.open]
        for choice in ends:
            self._scheduler.abort(choice.sequence.id)
            if self._speculator is not None:
                self._speculator.finish(choice.sequence.id)
        self._gauges = self._scheduler.stats()
        for choice in ends:
            self._end(choice, reason, error=error)

    def _drop_all(self, reason: FinishReason, error: OptpipeError | None) -> None:
        with self._changed:
            self._open.update((it.id, it) for it in self._inbox if isinstance(it, Request))
            self._inbox = []
        self._drop(list(self._open.values()), reason, error)

    def _end(
        self,
        choice: Choice,
        reason: FinishReason,
        *,
        stop: int | str | None = None,
        error: OptpipeError | None = None,
    ) -> None:
        """A choice has ended and its blocks are free: forget it and tell its reader."""
        choice.open = False
        self._choices.pop(choice.sequence.id, None)
        self._batch.forget(choice.sequence.id)
        self._counters.end(reason)
        request = choice.request
        over = not any(it.open for it in request.choices)
        if over:
            self._open.pop(request.id, None)
            request.choices = []  # they know the request: without the cycle nobody has to look for garbage
        queued = int(choice.scheduled is None)
        self._gate.end(queued=queued, running=1 - queued, name=request.id if over else None)
        timing = choice.timing(time.monotonic())
        request.mailbox.finish(
            choice.index, reason, choice.usage, timing, self._outbox, stop_reason=stop, error=error
        )


def _what(error: Exception) -> str:
    """An error in a few words."""
    first = str(error).strip().split("\n")[0][:200].rstrip(".")
    return first if isinstance(error, OptpipeError) else f"{type(error).__name__}: {first}".rstrip(": ")
