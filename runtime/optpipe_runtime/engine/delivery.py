"""From the engine's thread to whoever reads: threads and event loops, without losing or hoarding anything.

The engine writes into a request's mailbox, which keeps one growing piece a choice: a reader that lags finds
everything since its last look in one delta, and no more than one request's text is ever kept for it.
Readers that wait are woken once a step: one ``call_soon_threadsafe`` for each event loop, whatever the
number of requests that it reads.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from optpipe.errors import OptpipeError, TimeLimitError

from .outputs import Delta, FinishReason, Timing, Usage

if TYPE_CHECKING:
    from ..sampling.logprobs import TokenLogprobs


class Piece:
    """What one choice gained and nobody has read yet."""

    __slots__ = (
        "error", "finish_reason", "fresh", "index", "logprobs", "prompt_logprobs", "stop_reason", "texts",
        "timing", "token_ids", "usage",
    )  # fmt: skip

    def __init__(self, index: int) -> None:
        self.index = index
        self.fresh = False  # whether it is in its mailbox's line
        self.texts: list[str] = []
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprobs] | None = None
        self.prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
        self.finish_reason: FinishReason | None = None
        self.stop_reason: int | str | None = None
        self.error: OptpipeError | None = None
        self.usage: Usage | None = None
        self.timing: Timing | None = None

    def take(self, request_id: str) -> Delta:
        """All of it as a delta; nothing is left."""
        delta = Delta(
            request_id,
            self.index,
            "".join(self.texts),
            tuple(self.token_ids),
            None if self.logprobs is None else tuple(self.logprobs),
            self.prompt_logprobs,
            self.finish_reason,
            self.stop_reason,
            self.error,
            self.usage,
            self.timing,
        )
        self.fresh = False
        self.texts, self.token_ids, self.prompt_logprobs = [], [], None
        if self.logprobs is not None:
            self.logprobs = []
        return delta


class Mailbox:
    """Between the engine and the one reader of a request.

    Args:
        request_id: of the request.
        choices: how many there are.
        stream: whether the reader is told before a choice ends.
    """

    def __init__(self, request_id: str, choices: int, *, stream: bool) -> None:
        self.request_id = request_id
        self.accepted = False
        self.given_up = False  # by its caller; seen when it reaches the engine's thread
        self.prompt: tuple[int, ...] = ()
        self.error: OptpipeError | None = None  # why it is not served
        self._lock = threading.Lock()
        self._pieces = [Piece(index) for index in range(choices)]
        self._line: deque[Piece] = deque()
        self._open = choices
        self._stream = stream
        self._waiter: tuple[asyncio.AbstractEventLoop, asyncio.Future[None]] | None = None
        self._event: threading.Event | None = None

    # The engine's side

    def put(self, index: int, text: str, tokens: Sequence[int], logprobs: Any, outbox: Outbox) -> None:
        """Add to a choice that goes on."""
        with self._lock:
            if self.error is not None:
                return
            piece = self._pieces[index]
            piece.token_ids += tokens
            if text:
                piece.texts.append(text)
            if logprobs is not None:
                piece.logprobs = [] if piece.logprobs is None else piece.logprobs
                piece.logprobs += logprobs
            if self._stream:
                self._tell(piece, outbox)

    def put_prompt(self, logprobs: tuple[TokenLogprobs | None, ...]) -> None:
        """Add the prompt's log-probabilities to the first choice; its next token tells the reader."""
        with self._lock:
            self._pieces[0].prompt_logprobs = logprobs

    def finish(
        self,
        index: int,
        reason: FinishReason,
        usage: Usage,
        timing: Timing,
        outbox: Outbox,
        *,
        stop_reason: int | str | None = None,
        error: OptpipeError | None = None,
    ) -> None:
        """End a choice."""
        with self._lock:
            if self.error is not None:
                return
            piece = self._pieces[index]
            assert piece.finish_reason is None, f"choice {index} of {self.request_id} ended before"
            piece.finish_reason, piece.stop_reason, piece.error = reason, stop_reason, error
            piece.usage, piece.timing = usage, timing
            self._open -= 1
            self._tell(piece, outbox)

    def accept(self, prompt: tuple[int, ...], outbox: Outbox) -> None:
        """The request is in the queue."""
        with self._lock:
            self.prompt, self.accepted = prompt, True
            self._wake(outbox)

    def refuse(self, error: OptpipeError, outbox: Outbox) -> None:
        """The request will not be served, or not any further."""
        with self._lock:
            if self.error is None and self._open:
                self.error, self._open = error, 0
            self._wake(outbox)

    def _tell(self, piece: Piece, outbox: Outbox) -> None:
        if not piece.fresh:
            piece.fresh = True
            self._line.append(piece)
        self._wake(outbox)

    def _wake(self, outbox: Outbox) -> None:
        if self._event is not None:
            self._event.set()
        if self._waiter is not None:
            outbox.wake(*self._waiter, self)
            self._waiter = None

    # The reader's side

    @property
    def finished(self) -> bool:
        """Whether nothing more will come; there may be something left to take."""
        return self._open == 0

    def take(self) -> Delta | None:
        """The next delta, or None when there is none yet (or, when ``finished``, never again)."""
        with self._lock:
            return self._line.popleft().take(self.request_id) if self._line else None

    def wait(self, deadline: float | None, *, accepted: bool = False) -> None:
        """Block until there is something to take or nothing will come.

        Args:
            deadline: in ``time.monotonic()`` seconds, or None.
            accepted: wait until it was accepted or refused instead.

        Raises:
            TimeLimitError: the deadline passed.
        """
        while True:
            with self._lock:
                if self._ready(accepted):
                    return
                if self._event is None:
                    self._event = threading.Event()
                self._event.clear()
                event = self._event
            left = None if deadline is None else deadline - time.monotonic()
            if not event.wait(left if left is None else max(0.0, left)):
                raise TimeLimitError(f"The request '{self.request_id}' took longer than its caller waits.")

    async def wait_async(self, *, accepted: bool = False) -> None:
        """``wait`` for event loops."""
        while True:
            loop = asyncio.get_running_loop()
            with self._lock:
                if self._ready(accepted):
                    return
                future: asyncio.Future[None] = loop.create_future()
                self._waiter = (loop, future)
            await future

    def _ready(self, accepted: bool) -> bool:
        return self._open == 0 or (self.accepted if accepted else bool(self._line))


_Reader = tuple[asyncio.Future[None], Mailbox]


class Outbox:
    """Who is to be woken at the end of a step. One thread's own."""

    def __init__(self) -> None:
        self._waiting: dict[asyncio.AbstractEventLoop, list[_Reader]] = {}

    def wake(self, loop: asyncio.AbstractEventLoop, future: asyncio.Future[None], mailbox: Mailbox) -> None:
        """Note a reader that waits."""
        self._waiting.setdefault(loop, []).append((future, mailbox))

    def flush(self) -> list[Mailbox]:
        """Wake them all: one call a loop.

        Returns:
            mailboxes whose loop is closed: nobody reads them any more.
        """
        lost: list[Mailbox] = []
        if not self._waiting:
            return lost
        waiting, self._waiting = self._waiting, {}
        for loop, readers in waiting.items():
            try:
                loop.call_soon_threadsafe(_set_all, readers)
            except RuntimeError:  # the loop was closed
                lost += [mailbox for _, mailbox in readers]
        return lost


def _set_all(readers: list[_Reader]) -> None:
    for future, _ in readers:
        if not future.done():
            future.set_result(None)
