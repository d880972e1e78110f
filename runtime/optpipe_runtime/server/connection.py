"""HTTP on one connection, with limits that uvicorn lacks: how many there are, and how long headers may take.

Connections that wait for their client, because they are idle or their request is not complete, hold a place
only for as long as nobody else needs it: when all places are taken, the one that has waited the longest makes
way. So whoever opens many and sends half of something keeps nobody out. Those whose answer is being made
stay, and where all are such, a new one is refused.
"""

from __future__ import annotations

import asyncio
import json
import sys

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from .config import ServerConfig
from .errors import ApiError

CONNECTIONS_A_REQUEST = 4  # connections may idle between requests, so there are more than requests


def connections(config: ServerConfig) -> type[Connection]:
    """The class of one server's connections."""

    class Own(Connection):
        limits = config

    Own.waiting = {}  # shared by this server's connections, and by no other's
    return Own


class Connection(H11Protocol):
    """See the module. :func:`connections` makes the class of one server's.

    Attributes:
        limits: the server's.
        waiting: for their clients, of all connections of the server; those for the longest first.
    """

    limits: ServerConfig
    waiting: dict[Connection, None]
    _overdue: asyncio.TimerHandle | None = None
    _refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a place, or be refused."""
        most = CONNECTIONS_A_REQUEST * self.limits.max_requests
        if len(self.connections) >= most and not self._take_a_place():
            self._refused = True
            transport.abort()
            return
        super().connection_made(transport)
        self.waiting[self] = None
        # Responses find here how a connection is cut.
        self.app_state = {**self.app_state, "optpipe.cut": transport.abort}
        self._wait_for_headers(True)

    def connection_lost(self, exc: Exception | None) -> None:
        """Give the place back."""
        self._wait_for_headers(False)
        self.waiting.pop(self, None)
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
            self.waiting.pop(self, None)
            if self.conn.trailing_data[0]:
                self.cycle.keep_alive = False
            self.flow.resume_reading()

    def on_response_complete(self) -> None:
        """Wait for the next request, behind all that wait already."""
        super().on_response_complete()
        self.waiting.pop(self, None)
        if not (self.transport.is_closing() or self._answering()):
            self.waiting[self] = None

    def _take_a_place(self) -> bool:
        """Close the connection that has waited for its client the longest; False when none does."""
        longest = next(iter(self.waiting), None)
        if longest is None:
            return False
        del self.waiting[longest]
        self.connections.discard(longest)  # before the event loop tells of its end
        longest.transport.abort()
        return True

    def _answering(self) -> bool:
        cycle = self.cycle
        return bool(cycle) and not cycle.more_body and not cycle.response_complete

    def _wait_for_headers(self, begun: bool) -> None:
        """Cut the connection some time after its first headers, or any later ones, begin to come."""
        if begun and self._overdue is None:
            self._overdue = self.loop.call_later(self.limits.header_timeout, self.transport.abort)
        elif not begun and self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None

    def send_400_response(self, msg: str) -> None:
        """In the API's shape."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()  # in the middle of an answer
            return
        refusal = ApiError(400, _why(sys.exception(), self.limits), code="bad_http")
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


def _why(error: BaseException | None, config: ServerConfig) -> str:
    """What the parser of HTTP found wrong, as a sentence."""
    if isinstance(error, h11.RemoteProtocolError) and error.error_status_hint != 431:
        return f"The request is not HTTP: {str(error)[:200].rstrip('.')}."
    return f"The request's line and headers pass {config.max_header_bytes} bytes."
