"""A request as its caller holds it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from types import TracebackType
from typing import Self

from .delivery import Mailbox
from .outputs import Completion, Delta, RequestOutput, joined


class Submission:
    """A request on its way: an iterator of deltas, for threads and for event loops. Read it from one place.

    The request is given up when a ``with`` block or an ``async for`` is left before its end, and when nobody
    holds the submission any more.

    Attributes:
        request_id: as given, or made up.
    """

    def __init__(self, mailbox: Mailbox, choices: int, abort: Callable[[Mailbox], bool]) -> None:
        self.request_id = mailbox.request_id
        self._mailbox = mailbox
        self._choices = choices
        self._abort = abort

    @property
    def prompt_token_ids(self) -> tuple[int, ...]:
        """The prompt as the model sees it; empty until the request is ready."""
        return self._mailbox.prompt

    def wait_ready(self, timeout: float | None = None) -> None:
        """Wait until the request is accepted: its prompt is tokens, and it is in the queue.

        Raises:
            RequestError: it asks for something impossible.
            EngineError: the engine was closed meanwhile, or ``timeout`` seconds passed.
        """
        self._mailbox.wait(_deadline(timeout), accepted=True)
        self.check()

    async def ready(self) -> None:
        """``wait_ready`` for event loops."""
        await self._mailbox.wait_async(accepted=True)
        self.check()

    def __iter__(self) -> Iterator[Delta]:
        return self._deltas(None)

    async def __aiter__(self) -> AsyncIterator[Delta]:
        """The deltas, as they come. Whoever stops before the end gives the request up.

        Raises:
            OptpipeError: the request was not accepted.
        """
        try:
            while True:
                while (delta := self._mailbox.take()) is not None:
                    yield delta
                if self._mailbox.finished:
                    break
                await self._mailbox.wait_async()
        finally:
            self.abort()
        while (delta := self._mailbox.take()) is not None:
            yield delta
        self.check()

    def result(self, timeout: float | None = None) -> RequestOutput:
        """Wait for the end and join the deltas.

        Raises:
            RequestError: the request was not accepted.
            TimeLimitError: ``timeout`` seconds passed; the request goes on.
        """
        return self._joined(list(self._deltas(_deadline(timeout))))

    async def aresult(self) -> RequestOutput:
        """``result`` for event loops."""
        return self._joined([delta async for delta in self])

    def abort(self) -> bool:
        """Give the request up; its last deltas say "abort". False when it had ended."""
        return self._abort(self._mailbox)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    def __del__(self) -> None:
        self.abort()

    def _deltas(self, deadline: float | None) -> Iterator[Delta]:
        while True:
            while (delta := self._mailbox.take()) is not None:
                yield delta
            if self._mailbox.finished:
                break
            self._mailbox.wait(deadline)
        while (delta := self._mailbox.take()) is not None:
            yield delta
        self.check()

    def check(self) -> None:
        """Raise why the request is not served, if it is known by now."""
        if self._mailbox.error is not None:
            raise self._mailbox.error

    def _joined(self, deltas: list[Delta]) -> RequestOutput:
        prompt_logprobs = next((it.prompt_logprobs for it in deltas if it.prompt_logprobs is not None), None)
        completions: list[Completion] = []
        for index in range(self._choices):
            completions.append(joined([it for it in deltas if it.index == index]))
        return RequestOutput(self.request_id, self.prompt_token_ids, prompt_logprobs, tuple(completions))


def _deadline(timeout: float | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout
