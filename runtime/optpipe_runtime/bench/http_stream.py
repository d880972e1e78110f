"""HTTP/1.1 on plain asyncio streams: one request a connection, its server-sent events with their times.

Lighter than a general client, which would take time from the server on the same machine.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from optpipe.errors import RequestError

from .load import ClientError

LONGEST_ERROR = 1 << 16  # bytes of an error's body that are read
Event = tuple[float, bytes]


@dataclass(frozen=True)
class Server:
    """Where an OpenAI-compatible API is.

    Attributes:
        host, port: of the server.
        path: before ``/completions``: it ends in ``/v1``.
        secure: whether it speaks TLS.
        key: an API key, or None.
    """

    host: str
    port: int
    path: str = "/v1"
    secure: bool = False
    key: str | None = field(default=None, repr=False)

    def head(self, method: str, path: str, length: int = 0) -> bytes:
        """The request line and headers."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        lines = [
            f"{method} {self.path}{path} HTTP/1.1",
            f"Host: {host}:{self.port}",
            "Connection: close",
            "Accept: */*",
        ]
        if self.key is not None:
            lines.append(f"Authorization: Bearer {self.key}")
        if length:
            lines += ["Content-Type: application/json", f"Content-Length: {length}"]
        return "\r\n".join([*lines, "", ""]).encode()


def parse_url(url: str, key: str | None = None) -> Server:
    """The server that a URL names: ``http://host:port``, with or without ``/v1``.

    >>> parse_url("http://localhost:8000")
    Server(host='localhost', port=8000, path='/v1', secure=False)

    Raises:
        RequestError: it is no such URL, or the key cannot be a header.
    """
    if key is not None and not (key.isascii() and key.isprintable()):
        raise RequestError("An API key has printable ASCII characters only.")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not parts.hostname or not url.isprintable() or " " in url:
        raise RequestError(f"'{url[:80]}' is no URL of a server.", hint="for example http://127.0.0.1:8000")
    path = parts.path.rstrip("/")
    secure = parts.scheme == "https"
    port = (443 if secure else 80) if port is None else port
    return Server(parts.hostname, port, path if path.endswith("/v1") else f"{path}/v1", secure, key)


async def post_events(server: Server, request: bytes) -> list[Event]:
    """Send a whole request and receive its events: when each ``data:`` line came, and what it holds.

    Raises:
        ClientError: the server answers with an error, or in no form that HTTP knows.
        OSError: the connection fails.
    """
    reader, writer = await _connect(server)
    events: list[Event] = []
    rest = b""
    try:
        writer.write(request)
        await writer.drain()
        status, headers = await _head(reader)
        if status != 200:
            raise ClientError(f"HTTP {status}: {_message(await _error_body(reader, headers))}")
        async for piece in _pieces(reader, headers):
            now = time.perf_counter()
            *lines, rest = (rest + piece).split(b"\n")
            events += [(now, line[5:].strip()) for line in lines if line.startswith(b"data:")]
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
        raise ClientError("the connection was cut, or does not speak HTTP") from None
    finally:
        writer.close()
    if rest.startswith(b"data:"):
        events.append((time.perf_counter(), rest[5:].strip()))
    return events


async def get_json(server: Server, path: str) -> Any:
    """What a GET answers.

    Raises:
        ClientError, OSError: it fails, or is no JSON.
    """
    reader, writer = await _connect(server)
    try:
        writer.write(server.head("GET", path))
        await writer.drain()
        status, headers = await _head(reader)
        body = b"".join([piece async for piece in _pieces(reader, headers)])
        if status != 200:
            raise ClientError(f"HTTP {status}: {_message(body)}")
        return json.loads(body)
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
        raise ClientError("the answer is no JSON over HTTP") from None
    finally:
        writer.close()


async def _connect(server: Server) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    context = ssl.create_default_context() if server.secure else None
    return await asyncio.open_connection(server.host, server.port, ssl=context)


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[bytes, bytes]]:
    words = (await reader.readuntil(b"\n")).split(None, 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/"):
        raise ValueError(words)
    headers = {}
    while line := (await reader.readuntil(b"\n")).strip():
        name, _, value = line.partition(b":")
        headers[name.strip().lower()] = value.strip().lower()
    return int(words[1]), headers


async def _pieces(reader: asyncio.StreamReader, headers: dict[bytes, bytes]) -> AsyncIterator[bytes]:
    """The body as it comes: in chunks, of a stated length, or to the end of the connection."""
    if b"chunked" in headers.get(b"transfer-encoding", b""):
        while size := int((await reader.readuntil(b"\n")).split(b";")[0], 16):
            yield (await reader.readexactly(size + 2))[:size]
        return
    left = int(headers[b"content-length"]) if b"content-length" in headers else None
    while left is None or left > 0:
        piece = await reader.read(1 << 16 if left is None else min(left, 1 << 16))
        if not piece:
            if left is not None:
                raise asyncio.IncompleteReadError(b"", left)
            return
        left = None if left is None else left - len(piece)
        yield piece


async def _error_body(reader: asyncio.StreamReader, headers: dict[bytes, bytes]) -> bytes:
    body = b""
    async for piece in _pieces(reader, headers):
        body += piece
        if len(body) > LONGEST_ERROR:
            break
    return body


def _message(body: bytes) -> str:
    """What an error's body says, on one short line."""
    try:
        value = json.loads(body)
    except ValueError:
        value = body.decode(errors="replace")
    for name in ("error", "message", "detail"):
        value = value.get(name, value) if isinstance(value, dict) else value
    return " ".join(str(value).split())[:200]
