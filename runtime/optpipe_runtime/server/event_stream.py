"""An answer in pieces: server-sent events."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .errors import ApiError
from .job import Job
from .request_info import info_of
from .style import Style, usage_json
from .watch import ClientGoneError, OverdueError, watched

log = logging.getLogger("optpipe.server")


_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class EventStream(Response):
    """Sends a job's deltas as they come, and gives the job up when nobody reads them.

    Args:
        job: accepted by the engine.
        style: writes the chunks.
        until: when the answer must be complete, by the event loop's clock.
        write_timeout: seconds that one piece may wait for the client.
        usage: whether a last chunk says what the answer took.
    """

    media_type = "text/event-stream"

    def __init__(self, job: Job, style: Style, *, until: float, write_timeout: float, usage: bool) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._job, self._style, self._until = job, style, until
        self._write_timeout, self._usage = write_timeout, usage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything; a failure behind the head becomes an event of its own."""
        info = info_of(scope)
        writes = _Writes(scope, send, self._write_timeout)
        try:
            trouble = await self._pieces(receive, writes)
            if trouble is not None:
                info.failed = trouble.status
                await writes.body(_event(trouble.body()))
            await writes.body(b"data: [DONE]\n\n", more=False)
        except ClientGoneError:
            info.failed = 499
        finally:
            writes.stop()
            self._job.close()
            info.facts["usage"] = usage_json(self._job.usage())

    async def _pieces(self, receive: Receive, writes: _Writes) -> ApiError | None:
        """Send the head and what is generated; what went wrong behind the head.

        Raises:
            ClientGoneError: nobody is there any more.
        """
        try:
            async with watched(receive, self._until):
                await writes.start(self.status_code, self.raw_headers)
                async with aclosing(self._events()) as events:
                    async for event in events:
                        await writes.body(event)
        except OverdueError:
            return ApiError(504, "The request took longer than this server allows.", code="timeout")
        except ApiError as error:
            return error
        return None

    async def _events(self) -> AsyncGenerator[bytes]:
        for chunk in self._style.opening():
            yield _event(chunk)
        async with aclosing(self._job.deltas()) as deltas:
            async for delta in deltas:
                for chunk in self._style.chunks(delta):
                    yield _event(chunk | {"usage": None} if self._usage else chunk)
        if self._usage:
            yield _event(self._style.usage_chunk(self._job.usage()))


class _Writes:
    """The sending side of one answer, with an eye on how long the client leaves a piece untouched.

    A timer looks now and then, which costs less than a time limit around every piece.
    """

    def __init__(self, scope: Scope, send: Send, timeout: float) -> None:
        self._scope, self._send, self._timeout = scope, send, timeout
        self._loop = asyncio.get_running_loop()
        self._since: float | None = None  # when the piece began that has not been taken yet
        self._timer = self._loop.call_later(timeout / 2, self._look)

    async def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Send the head."""
        await self._write({"type": "http.response.start", "status": status, "headers": headers})

    async def body(self, data: bytes, *, more: bool = True) -> None:
        """Send a piece."""
        await self._write({"type": "http.response.body", "body": data, "more_body": more})

    def stop(self) -> None:
        """Look no more."""
        self._timer.cancel()

    async def _write(self, message: dict[str, object]) -> None:
        self._since = self._loop.time()
        await self._send(message)
        self._since = None

    def _look(self) -> None:
        """Cut a connection that takes too long; then its answer ends like any other whose client has left."""
        if self._since is not None and self._loop.time() - self._since > self._timeout:
            log.warning("the reader of a stream is too slow", extra={"request_id": info_of(self._scope).id})
            cut = self._scope.get("state", {}).get("optpipe.cut")  # under our own listener
            if cut is not None:
                cut()
            return
        self._timer = self._loop.call_later(self._timeout / 2, self._look)


def _event(value: dict[str, object]) -> bytes:
    return b"data: " + _encode(value).encode() + b"\n\n"
