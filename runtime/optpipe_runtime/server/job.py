"""One HTTP request at the engine: a submission a prompt, choices numbered through, ends counted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import replace

from optpipe.errors import CapacityError, EngineError, OptpipeError, RequestError, TimeLimitError

from ..engine import Completion, Delta, RequestOutput, Timing, Usage
from ..engine.submission import Submission
from ..sampling.params import SamplingParams
from .errors import ApiError, from_optpipe, invalid, too_busy
from .prompts import PromptInput
from .request_info import RequestInfo
from .schema.sampling import SamplingFields
from .service import Service


class Job:
    """Submits, and gives up whatever has not ended when it is closed.

    A grammar may take seconds to compile, so what needs one is submitted by :meth:`ready`, and the threads
    that tokenize for everybody stay free.

    Args:
        service: whose engine generates.
        name: the answer's id; the engine sees it with a number behind it.
        prompts: at least one.
        params: of every prompt.
        asked: says whether to stream, and the request's place and salt.
        info: says when the request came.

    Attributes:
        prompts: as given.
        n: choices a prompt.

    Raises:
        ApiError: there is no room, the server is stopping, or a request is impossible.
    """

    def __init__(
        self,
        service: Service,
        name: str,
        prompts: Sequence[PromptInput],
        params: SamplingParams,
        asked: SamplingFields,
        info: RequestInfo,
    ) -> None:
        self.prompts, self.n = tuple(prompts), params.n
        self._service, self._metrics = service, service.metrics
        self._name, self._params = name, params
        self._asked = asked
        self._waited = time.monotonic() - info.arrived
        self._submissions: list[Submission] = []
        self._usage: dict[int, Usage] = {}
        self._last: dict[int, float] = {}
        _check_lengths(prompts, service)
        service.jobs.add(self)
        if params.structured is None:
            self._submit()

    def _submit(self) -> None:
        """Hand everything to the engine; None of it, when it refuses one.

        Raises:
            ApiError: there is no room, or a request is impossible.
        """
        try:
            with self._service.engine.hold(len(self.prompts) * self.n):
                for i, prompt in enumerate(self.prompts):
                    submission = self._service.engine.submit(
                        prompt.ids,
                        self._params,
                        request_id=f"{self._name}-{i}",
                        priority=self._asked.priority or 0,
                        salt=(self._asked.cache_salt or "").encode(),
                        stream=bool(self._asked.stream),
                    )
                    self._submissions.append(submission)
        except OptpipeError as error:
            self.close()
            raise _refusal(error) from error

    async def ready(self) -> None:
        """Wait until the engine has accepted every prompt.

        Raises:
            ApiError: it refuses one.
        """
        if not self._submissions:
            self._submit()  # from the event loop: then the engine compiles grammars in threads of its own
        try:
            for submission in self._submissions:
                await submission.ready()
        except OptpipeError as error:
            raise _refusal(error) from error

    async def deltas(self) -> AsyncGenerator[Delta]:
        """All deltas as they come; ``index`` counts through all prompts' choices.

        Raises:
            ApiError: the engine failed, or stopped.
        """
        source = aiter(self._submissions[0]) if len(self._submissions) == 1 else self._merged()
        try:
            async for delta in source:
                self._note(delta)
                yield delta
        except OptpipeError as error:
            raise _refusal(error) from error

    async def outputs(self) -> list[RequestOutput]:
        """All prompts' outputs, complete, in order.

        Raises:
            ApiError: the engine failed, or stopped.
        """
        found = []
        for i, submission in enumerate(self._submissions):
            try:
                output = await submission.aresult()
            except OptpipeError as error:
                raise _refusal(error) from error
            for completion in output.completions:
                self._note_end(i * self.n + completion.index, completion)
            found.append(output)
        return found

    def usage(self) -> Usage:
        """Of all prompts and choices that have ended; a prompt counts once, however many answers it has."""
        used = [(choice, it) for choice, it in sorted(self._usage.items())]
        firsts = [it for choice, it in used if choice % self.n == 0]
        return Usage(
            sum(len(it.ids) for it in self.prompts),
            sum(it.completion_tokens for _, it in used),
            sum(it.cached_tokens for it in firsts),
        )

    def close(self) -> None:
        """Give up what has not ended, and be forgotten. May be called again, from any thread."""
        self.abort()
        self._service.jobs.discard(self)

    def abort(self) -> None:
        """Give up what has not ended; who waits for it is told that the server stopped."""
        for submission in self._submissions:
            submission.abort()

    async def _numbered(self, place: int) -> AsyncIterator[Delta]:
        async for delta in self._submissions[place]:
            yield replace(delta, index=place * self.n + delta.index) if place else delta

    async def _merged(self) -> AsyncIterator[Delta]:
        """Of several submissions, whichever comes first."""
        queue: asyncio.Queue[Delta | BaseException | None] = asyncio.Queue(maxsize=2 * len(self._submissions))

        async def pump(place: int) -> None:
            try:
                async for delta in self._numbered(place):
                    await queue.put(delta)
                await queue.put(None)
            except Exception as error:
                await queue.put(error)

        pumps = [asyncio.create_task(pump(i)) for i in range(len(self._submissions))]
        left = len(pumps)
        try:
            while left:
                found = await queue.get()
                if isinstance(found, BaseException):
                    raise found
                if found is None:
                    left -= 1
                else:
                    yield found
        finally:
            for task in pumps:
                task.cancel()

    def _note(self, delta: Delta) -> None:
        """Measure a piece of a stream."""
        now = time.monotonic()
        before = self._last.get(delta.index)
        if before is not None and delta.token_ids:
            self._metrics.gap(now - before)
        self._last[delta.index] = now
        if delta.finish_reason is not None:
            self._note_end(delta.index, delta)

    def _note_end(self, choice: int, end: Delta | Completion) -> None:
        if end.finish_reason == "error":
            raise _failure(end.error) from end.error
        if end.finish_reason == "abort":
            raise ApiError(503, "The server stopped before the answer was complete.", code="stopped")
        usage, timing = end.usage, end.timing
        assert isinstance(usage, Usage) and isinstance(timing, Timing), (
            f"the end of {choice = } says what it took"
        )
        self._usage[choice] = usage
        self._metrics.finished(usage, timing, str(end.finish_reason), self._waited)


def _check_lengths(prompts: Sequence[PromptInput], service: Service) -> None:
    most = service.config.max_prompt_tokens
    for i, prompt in enumerate(prompts):
        where = f"Prompt {i}" if len(prompts) > 1 else "The prompt"
        if not prompt.ids:
            raise invalid(f"{where} is empty: there is nothing to continue.", "prompt")
        if most is not None and len(prompt.ids) > most:
            raise invalid(
                f"{where} has {len(prompt.ids)} tokens; this server takes {most} of the model's context of "
                f"{service.engine.context_length}.",
                "prompt",
                "context_length_exceeded",
            )


def _refusal(error: OptpipeError) -> ApiError:
    """The engine did not take a request."""
    if isinstance(error, CapacityError):
        return too_busy(error.message)
    if isinstance(error, EngineError):
        return ApiError(
            503, "The server is stopping, or cannot generate.", code="stopped", headers={"Retry-After": "5"}
        )
    return from_optpipe(error)


def _failure(error: OptpipeError | None) -> ApiError:
    """The engine took a request and then failed."""
    if isinstance(error, RequestError):  # a grammar that grows too complex on the way
        return from_optpipe(error)
    if isinstance(error, TimeLimitError):
        return ApiError(504, error.message, code="timeout")
    cause = None if error is None else error.__cause__
    torchs = type(cause).__name__ == "OutOfMemoryError"
    if torchs or isinstance(cause, MemoryError | CapacityError):
        message = "The step that this request was part of did not fit into memory."
        return ApiError(503, message, code="out_of_memory", headers={"Retry-After": "5"})
    return ApiError(500, "Generation failed; the server's log says why.", code="generation_failed")
