"""From a request's body to its answer, the same for both generating endpoints.

The event loop only moves bytes: parsing, rendering, tokenizing and submitting run in a thread, and so does
the writing of answers that are long.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from .errors import ApiError
from .event_stream import EventStream
from .job import Job
from .json_body import read_body
from .request_info import RequestInfo, info_of
from .service import Service, service_of
from .style import Style, usage_json
from .watch import ClientGoneError, OverdueError, watched


@dataclass(frozen=True)
class Prepared:
    """A request at the engine.

    Attributes:
        job: its submissions.
        style: writes its answer.
        stream: whether in pieces.
        usage: whether the stream's last piece says what it took.
        heavy: whether writing the answer takes time.
    """

    job: Job
    style: Style
    stream: bool
    usage: bool = False
    heavy: bool = False


Prepare = Callable[[Service, bytes, RequestInfo], Prepared]


async def answer(request: Request, prepare: Prepare) -> Response:
    """Serve one generating request.

    Args:
        prepare: makes the body a job; runs in a thread.

    Raises:
        ApiError: the request is wrong, there is no room, or its time is up.
    """
    service, info = service_of(request), info_of(request.scope)
    until = asyncio.get_running_loop().time() + service.config.request_timeout
    try:
        body = await read_body(request, service.config)
        async with watched(request.receive, until):
            prepared = await service.prepare(
                lambda: prepare(service, body, info), lambda late: late.job.close(), size=len(body)
            )
            return await _begun(service, prepared, info, until)
    except (ClientDisconnect, ClientGoneError):
        info.failed = 499
        return Response(status_code=499)  # nobody reads it
    except OverdueError:
        seconds = f"{service.config.request_timeout:g}"
        raise ApiError(504, f"The request took longer than {seconds} s.", code="timeout") from None


async def _begun(service: Service, prepared: Prepared, info: RequestInfo, until: float) -> Response:
    """The answer to a request that is at the engine: all of it, or a stream that is about to begin."""
    job, streams = prepared.job, False
    try:
        await job.ready()
        if prepared.stream:
            streams = True
            timeout = service.config.write_timeout
            return EventStream(job, prepared.style, until=until, write_timeout=timeout, usage=prepared.usage)
        outputs = await job.outputs()
        usage = job.usage()
        info.facts["usage"] = usage_json(usage)

        def write() -> bytes:
            return json.dumps(prepared.style.whole(outputs, usage), ensure_ascii=False).encode()

        content = await service.prepare(write) if prepared.heavy else write()
        return Response(content, media_type="application/json")
    finally:
        if not streams:
            job.close()
