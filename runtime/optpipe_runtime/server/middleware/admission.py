"""How many requests may be in the server at once; one more is told to come again.

The engine has a queue of its own; this one bounds what comes before it: bodies, prompts, threads. A request
takes a place when its body has come, so that those who send half of one keep nobody out. Bodies on their way
share a budget of bytes instead.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import ApiError, too_busy

BODIES = 64  # of the largest size, that may be on their way at once
SMALL = 64 << 10  # bytes; a shorter body comes in however many longer ones there are


class Admission:
    """Counts the requests that make work.

    Args:
        app: what they are let into.
        most: requests.
        body_bytes: of one body.
    """

    def __init__(self, app: ASGIApp, most: int, body_bytes: int) -> None:
        self.app, self._most, self._inside = app, most, 0
        self._budget, self._coming = BODIES * body_bytes, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it, without reading its body where that can be seen at once."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        visit = _Visit(self, receive)
        try:
            self.check()
        except ApiError as refusal:
            await refusal.response()(scope, receive, send)
            return
        try:
            await self.app(scope, visit.receive, send)
        finally:
            visit.end()

    def check(self) -> None:
        """Refuse one request more when there is no place for it.

        Raises:
            ApiError: with 429.
        """
        if self._inside >= self._most:
            raise too_busy(f"The server has {self._most} requests, and takes no more now.")

    def come(self, size: int, so_far: int) -> None:
        """Bytes of a body, of which there are ``so_far``, have come.

        Raises:
            ApiError: with 429, when there are too many.
        """
        self._coming += size
        if so_far > SMALL and self._coming > self._budget:
            raise too_busy("The server reads too many requests, and takes no more now.")

    def leave(self, size: int) -> None:
        """Bytes of a body are no longer on their way."""
        self._coming -= size

    def take(self, places: int) -> None:
        """Count a request in, or, with -1, out."""
        self._inside += places


class _Visit:
    """One request: bytes while its body comes, then a place."""

    def __init__(self, admission: Admission, receive: Receive) -> None:
        self._admission, self._receive = admission, receive
        self._bytes, self._places = 0, 0

    async def receive(self) -> Message:
        """The next message of the client.

        Raises:
            ApiError: with 429, when there is no room for it.
        """
        message = await self._receive()
        if message["type"] == "http.request" and not self._places:
            size = len(message.get("body", b""))
            self._bytes += size
            self._admission.come(size, self._bytes)
            if not message.get("more_body", False):
                self._admission.check()
                self._places = 1
                self._admission.take(1)
                self._admission.leave(self._bytes)
                self._bytes = 0
        return message

    def end(self) -> None:
        """The request is answered."""
        self._admission.leave(self._bytes)
        self._admission.take(-self._places)
