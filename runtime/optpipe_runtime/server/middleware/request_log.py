"""Gives each request its id, counts it, logs it at its end, and answers what nobody else did.

One line a request: what it was, how it ended and what it took. Never a prompt, an answer or a key.
"""

from __future__ import annotations

import logging
import time

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import ApiError
from ..metrics import Metrics
from ..request_info import RequestInfo, begin

log = logging.getLogger("optpipe.server")

# Paths as metrics name them: a path that nobody serves must not make a label of its own.
_KNOWN = frozenset(
    [
        "/",
        "/health",
        "/metrics",
        "/v1/models",
        "/v1/completions",
        "/v1/chat/completions",
        "/tokenize",
        "/detokenize",
    ]
)


class RequestLog:
    """The outermost layer."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        info, status = begin(scope), 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", info.id.encode())]
            await send(message)

        self._metrics.active.inc()
        try:
            await self.app(scope, receive, sending)
        except ClientDisconnect:  # in the middle of its own body
            info.failed = 499
        except Exception:
            log.exception("a request failed unexpectedly", extra={"request_id": info.id})
            info.failed = 500
            if status:
                raise
            message = "The server failed unexpectedly; its log says why."
            await ApiError(500, message, code="internal_error").response()(scope, receive, sending)
        finally:
            self._metrics.active.dec()
            self._end(scope, info, info.failed or status or 499)

    def _end(self, scope: Scope, info: RequestInfo, status: int) -> None:
        path = str(scope["path"])
        self._metrics.count("http_requests", path if path in _KNOWN else "other", str(status))
        if status >= 400:
            self._metrics.count("request_failure", str(status))
        client = scope.get("client")
        facts = {
            "request_id": info.id,
            "method": scope["method"],
            "path": path[:200],
            "status": status,
            "seconds": round(time.monotonic() - info.arrived, 6),
            "client": client[0] if client else None,
        }
        quiet = path in ("/health", "/metrics") and status < 400
        log.log(logging.DEBUG if quiet else logging.INFO, "request", extra=facts | info.facts)
