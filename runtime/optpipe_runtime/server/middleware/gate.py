"""How many requests may be in the server at once; one more is told to come again.

The engine has a queue of its own; this one bounds what comes before it: bodies, prompts, threads.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from ..errors import too_busy


class Gate:
    """Counts the requests that make work."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app, self._most, self._inside = app, most, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it without reading its body."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        if self._inside >= self._most:
            refusal = too_busy(f"The server has {self._most} requests, and takes no more now.")
            await refusal.response()(scope, receive, send)
            return
        self._inside += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self._inside -= 1
