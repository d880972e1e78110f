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


class SlowReaderError(Exception):
    """The client leaves its end of the connection full."""


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
        """Send everything; a failure behind the first piece becomes an event of its own."""
        info = info_of(scope)
        trouble: ApiError | None = None
        try:
            async with watched(receive, self._until):
                await self._write(
                    send,
                    {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers},
                )
                async with aclosing(self._events()) as events:
                    async for event in events:
                        await self._write(send, _body(event))
        except ClientGoneError:
            info.failed = 499
            return
        except SlowReaderError:
            info.failed = 499
            log.warning("the reader of a stream is too slow", extra={"request_id": info.id})
            await _cut(scope)
            return
        except OverdueError:
            trouble = ApiError(504, "The request took longer than this server allows.", code="timeout")
        except ApiError as error:
            trouble = error
        finally:
            self._job.close()
            info.facts["usage"] = usage_json(self._job.usage())
        if trouble is not None:
            info.failed = trouble.status
            await send(_body(_event(trouble.body())))
        await send(_body(b"data: [DONE]\n\n"))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _events(self) -> AsyncGenerator[bytes]:
        for chunk in self._style.opening():
            yield _event(chunk)
        async with aclosing(self._job.deltas()) as deltas:
            async for delta in deltas:
                for chunk in self._style.chunks(delta):
                    yield _event(chunk | {"usage": None} if self._usage else chunk)
        if self._usage:
            yield _event(self._style.usage_chunk(self._job.usage()))

    async def _write(self, send: Send, message: dict[str, object]) -> None:
        try:
            async with asyncio.timeout(self._write_timeout) as deadline:
                await send(message)
        except TimeoutError:
            if deadline.expired():
                raise SlowReaderError from None
            raise


def _event(value: dict[str, object]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def _body(data: bytes) -> dict[str, object]:
    return {"type": "http.response.body", "body": data, "more_body": True}


async def _cut(scope: Scope) -> None:
    """Close the connection without waiting for what is still to be sent."""
    transport = scope.get("state", {}).get("transport")
    if isinstance(transport, asyncio.Transport):
        transport.abort()
        await asyncio.sleep(0)  # so that the server hears of it before this answer ends in the middle
