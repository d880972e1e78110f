"""uvicorn as this server wants it: an end in two steps.

The first SIGTERM (or Ctrl-C) closes the door and lets running requests end; the second, or the end of the
time that they have, gives them up, which their clients are told; the third does not wait for that.
"""

from __future__ import annotations

import asyncio
import logging
import math
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from .config import ServerConfig
from .connection import connections
from .service import Service

log = logging.getLogger("optpipe.server")
LAST_WORDS = 2.0  # seconds for telling clients that their requests were given up


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
                http=connections(config),
                ws="none",
                access_log=False,
                log_config=None,
                server_header=False,
                proxy_headers=False,
                h11_max_incomplete_event_size=config.max_header_bytes,
                limit_concurrency=None,
                timeout_keep_alive=max(1, round(config.keep_alive)),
                timeout_graceful_shutdown=math.ceil(config.drain_timeout + 4 * LAST_WORDS),
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
        if not await self._all_told():
            log.error("a step of the engine does not come back; nobody waits for it any longer")
            self._service.abandon()
            await self._all_told()
        self.force_exit = True

    async def _all_told(self) -> bool:
        """Wait a little until every client has been told; False when some could not be."""
        until = asyncio.get_running_loop().time() + LAST_WORDS
        while self._service.jobs and asyncio.get_running_loop().time() < until:
            await asyncio.sleep(0.02)
        if not self._service.jobs:
            await asyncio.sleep(LAST_WORDS)  # for the last pieces; uvicorn does not wait for all of it
        return not self._service.jobs

    async def startup(self, sockets: list[Any] | None = None) -> None:
        """Begin, and say where."""
        await super().startup(sockets)
        if self.started:
            self._on_started(int(self.servers[0].sockets[0].getsockname()[1]))
