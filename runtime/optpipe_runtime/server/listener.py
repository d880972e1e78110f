"""uvicorn as this server wants it: bounded connections, and an end in two steps.

The first SIGTERM (or Ctrl-C) closes the door and lets running requests end; the second, or the end of the
time that they have, gives them up, which their clients are told; the third does not wait for that.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from .config import ServerConfig
from .errors import ApiError
from .service import Service

log = logging.getLogger("optpipe.server")
LAST_WORDS = 2.0  # seconds for telling clients that their requests were given up
CONNECTIONS_A_REQUEST = 4  # connections may idle between requests, so there are more than requests


class Listener(uvicorn.Server):
    """A server that counts signals.

    Args:
        app: to be served.
        config: its limits.
        host, port: where; port 0 takes a free one.
        on_started: told the port once connections are taken.
    """

    def __init__(
        self, app: FastAPI, config: ServerConfig, host: str, port: int, on_started: Callable[[int], None]
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                host=host,
                port=port,
                http=_protocol(config),
                ws="none",
                access_log=False,
                log_config=None,
                server_header=False,
                proxy_headers=False,
                h11_max_incomplete_event_size=config.max_header_bytes,
                limit_concurrency=None,
                timeout_keep_alive=max(1, round(config.keep_alive)),
                timeout_graceful_shutdown=math.ceil(config.drain_timeout + 2 * LAST_WORDS),
            )
        )
        self._service: Service = app.state.service
        self._drain_timeout = config.drain_timeout
        self._on_started = on_started
        self.signals = 0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain on the first signal, give up what runs on the second, leave on the third."""
        self.signals += 1
        name = signal.Signals(sig).name
        if self.signals == 1:
            log.info("draining", extra={"signal": name})
            self.should_exit = True
        else:
            log.warning("stopping at once", extra={"signal": name})
            self.force_exit = self.signals > 2

    async def shutdown(self, sockets: list[Any] | None = None) -> None:
        """Wait for requests that run, but not for ever."""
        cut = asyncio.create_task(self._cut())
        try:
            await super().shutdown(sockets)
        finally:
            cut.cancel()

    async def _cut(self) -> None:
        """Give up what runs when its time is over, and leave when that did not help."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._drain_timeout
        while self.signals < 2 and loop.time() < until:
            await asyncio.sleep(0.02)
        if self._service.jobs:
            log.warning("requests are given up", extra={"requests": len(self._service.jobs)})
        self._service.stop()
        await asyncio.sleep(LAST_WORDS)
        self.force_exit = True

    async def startup(self, sockets: list[Any] | None = None) -> None:
        """Begin, and say where."""
        await super().startup(sockets)
        if self.started:
            self._on_started(int(self.servers[0].sockets[0].getsockname()[1]))


def _why(error: BaseException | None, config: ServerConfig) -> str:
    """What the parser of HTTP found wrong, as a sentence."""
    if isinstance(error, h11.RemoteProtocolError) and error.error_status_hint != 431:
        return f"The request is not HTTP: {str(error)[:200].rstrip('.')}."
    return f"The request's line and headers pass {config.max_header_bytes} bytes."


def _protocol(config: ServerConfig) -> type[asyncio.Protocol]:
    """HTTP on one connection, with limits that uvicorn lacks."""
    most = CONNECTIONS_A_REQUEST * config.max_requests

    class Protocol(H11Protocol):
        _overdue: asyncio.TimerHandle | None = None
        _refused = False

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            if len(self.connections) >= most:
                self._refused = True
                transport.abort()
                return
            super().connection_made(transport)
            # Responses find the transport here when they must cut a connection.
            self.app_state = {**self.app_state, "transport": transport}
            self._wait_for_headers(True)

        def connection_lost(self, exc: Exception | None) -> None:
            self._wait_for_headers(False)
            if not self._refused:
                super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            """Take bytes in, but no second request before the first is answered.

            That would stop the reading, and with it the notice of a client that leaves. It is dropped, and
            the connection is closed behind the answer, which tells a client to send it again.
            """
            if self._refused:
                return
            if self._answering():
                self.cycle.keep_alive = False
                return
            super().data_received(data)
            self._wait_for_headers(self.conn.their_state is h11.IDLE and bool(self.conn.trailing_data[0]))
            if self._answering():
                if self.conn.trailing_data[0]:
                    self.cycle.keep_alive = False
                self.flow.resume_reading()

        def _answering(self) -> bool:
            cycle = self.cycle
            return bool(cycle) and not cycle.more_body and not cycle.response_complete

        def _wait_for_headers(self, waiting: bool) -> None:
            """Cut the connection some time after its first headers, or any later ones, begin to come."""
            if waiting and self._overdue is None:
                self._overdue = self.loop.call_later(config.header_timeout, self.transport.abort)
            elif not waiting and self._overdue is not None:
                self._overdue.cancel()
                self._overdue = None

        def send_400_response(self, msg: str) -> None:
            """In the API's shape."""
            if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
                self.transport.close()  # in the middle of an answer
                return
            refusal = ApiError(400, _why(sys.exception(), config), code="bad_http")
            body = json.dumps(refusal.body()).encode()
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
            ]
            for event in (
                h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
            self.transport.close()

    return Protocol
