"""Who may ask: by the size of the headers, by the Host header and by API key.

A page of the web that a user visits can send requests to servers on the user's machine. It cannot read keys,
set a JSON Content-Type without being asked about (CORS is off), or, by the check of Host, pass for a local
name after changing what its own name resolves to.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from ..config import ServerConfig
from ..errors import ApiError


class Guard:
    """Refuses whoever has no key, and names that are not the server's."""

    def __init__(self, app: ASGIApp, config: ServerConfig) -> None:
        self.app, self._hosts, self._most = app, config.allowed_hosts, config.max_header_bytes
        self._keys = tuple(_digest(it) for it in config.api_keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request pass, or answer it."""
        if scope["type"] == "http":
            refusal = self._refusal(scope, Headers(scope=scope), str(scope["path"]))
            if refusal is not None:
                await refusal.response()(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _refusal(self, scope: Scope, headers: Headers, path: str) -> ApiError | None:
        if _header_bytes(scope) > self._most:
            return ApiError(431, f"The request's line and headers pass {self._most} bytes.", code="bad_http")
        if self._hosts is not None and _host_name(headers.get("host", "")) not in self._hosts:
            return ApiError(
                403, "The Host header names another server; --allowed-host adds names.", code="bad_host"
            )
        if not self._keys or path == "/health" or self._opens(headers.get("authorization", "")):
            return None
        # A browser asks its user for the key then, as the password.
        challenge = 'Basic realm="optpipe"' if path == "/" else "Bearer"
        return ApiError(
            401,
            "The API key is missing or unknown; send it as 'Authorization: Bearer KEY'.",
            code="invalid_api_key",
            headers={"WWW-Authenticate": challenge},
        )

    def _opens(self, authorization: str) -> bool:
        """Whether one of the keys was sent. Takes as long for any wrong key, and for any right one."""
        sent = _digest(_sent_key(authorization))
        found = False
        for key in self._keys:
            found |= hmac.compare_digest(sent, key)
        return found


def _header_bytes(scope: Scope) -> int:
    line = len(scope.get("raw_path") or scope["path"]) + len(scope["query_string"])
    return line + sum(len(name) + len(value) + 4 for name, value in scope["headers"])  # ": " and a line end


def _digest(key: str) -> bytes:
    """Of one length, whatever the key's, so that comparing tells nothing about it."""
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()


def _sent_key(authorization: str) -> str:
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, ValueError):
            return ""
    return ""


def _host_name(host: str) -> str:
    """The name in a Host header, without the port."""
    if host.startswith("["):
        return host.partition("]")[0].removeprefix("[").lower()
    return host.partition(":")[0].lower()
