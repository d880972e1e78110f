"""Who is in: names that are taken, places in the queue, whether anybody may still come. For any thread."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from optpipe.errors import CapacityError, EngineError, RequestError

from .delivery import Mailbox


class _Held(threading.local):
    """Places that a thread has taken and not used yet."""

    places = 0


class Gate:
    """Counts sequences from the moment that they are asked for until they end.

    A sequence is queued until its first step. The queue has ``max_waiting`` places; sequences that can run at
    once need none of them.

    Args:
        max_running: sequences that run at once.
        max_waiting: sequences that may wait.
    """

    def __init__(self, max_running: int, max_waiting: int) -> None:
        self._max_running, self._max_waiting = max_running, max_waiting
        self._changed = threading.Condition()
        self._names: dict[str, Mailbox] = {}
        self._shut: str | None = None
        self._held = _Held()
        self.queued = 0
        self.running = 0

    def admit(self, mailbox: Mailbox, sequences: int) -> None:
        """Take a request's name, and places in the queue.

        Raises:
            RequestError: the name is taken, or there could never be so many places.
            CapacityError: the queue is full.
            EngineError: nobody may come any more.
        """
        with self._changed:
            if self._shut is not None:
                raise EngineError(self._shut)
            name = mailbox.request_id
            if name in self._names:
                raise RequestError(f"The request id '{name[:100]}' is in use.", hint="give each its own")
            held = min(sequences, self._held.places)
            self._check(sequences - held, f"n is {sequences}")
            self._names[name] = mailbox
            self._held.places -= held
            self.queued += sequences - held

    @contextlib.contextmanager
    def hold(self, sequences: int) -> Iterator[None]:
        """Places for several requests that this thread asks for meanwhile: all of them, or none.

        Raises:
            RequestError: there could never be so many places.
            CapacityError: the queue is full.
            EngineError: nobody may come any more.
        """
        with self._changed:
            if self._shut is not None:
                raise EngineError(self._shut)
            self._check(sequences, f"prompt and n ask for {sequences} sequences")
            self.queued += sequences
            self._held.places = sequences
        try:
            yield
        finally:
            with self._changed:
                self.queued -= self._held.places
                self._held.places = 0

    def _check(self, sequences: int, what: str) -> None:
        most = self._max_running + self._max_waiting
        if sequences > most:
            raise RequestError(f"{what}, but the engine takes {most} sequences in all.")
        if self.queued + self.running + sequences > most:
            raise CapacityError(
                f"The queue is full: {self.queued} sequences are waiting.", hint="try again later"
            )

    def find(self, name: str) -> Mailbox | None:
        """The mailbox of the request that has this name now."""
        return self._names.get(name)

    def start(self, sequences: int) -> None:
        """Sequences have their first step."""
        with self._changed:
            self.queued -= sequences
            self.running += sequences

    def end(self, *, queued: int = 0, running: int = 0, name: str | None = None) -> None:
        """Sequences have ended, and with the last of them the request of this name."""
        with self._changed:
            self.queued -= queued
            self.running -= running
            if name is not None:
                self._names.pop(name, None)
                if not self._names:
                    self._changed.notify_all()

    def shut(self, why: str) -> None:
        """Let nobody in any more."""
        with self._changed:
            self._shut = self._shut or why

    def clear(self) -> None:
        """Count nobody any more: the engine's thread, which would say who ends, is lost."""
        with self._changed:
            self._names.clear()
            self.queued = self.running = 0
            self._changed.notify_all()

    def wait_empty(self, timeout: float | None) -> bool:
        """Wait until every request has ended; False when that took longer than ``timeout`` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._names, timeout)

    @property
    def busy(self) -> bool:
        """Whether there is any request."""
        return bool(self._names)
