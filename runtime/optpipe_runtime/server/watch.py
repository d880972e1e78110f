"""Stops waiting for an answer when its client has left or its time is up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.types import Receive


class ClientGoneError(Exception):
    """The client closed the connection."""


class OverdueError(Exception):
    """The request took longer than it may."""


@asynccontextmanager
async def watched(receive: Receive, until: float) -> AsyncIterator[None]:
    """Cancels its body when the client leaves, or at the time ``until`` of the event loop's clock.

    The request's body must have been read: from here on ``receive`` tells of nothing but the end.

    Raises:
        ClientGoneError, OverdueError: instead of the cancellation.
    """
    gone = False
    loop = asyncio.get_running_loop()

    async def watch(deadline: asyncio.Timeout) -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        if not deadline.expired():
            deadline.reschedule(loop.time())

    deadline = asyncio.timeout_at(until)
    try:
        async with deadline:
            watcher = asyncio.create_task(watch(deadline))
            try:
                yield
            finally:
                watcher.cancel()
    except TimeoutError:
        if not deadline.expired():  # somebody else's
            raise
        raise (ClientGoneError if gone else OverdueError)() from None
