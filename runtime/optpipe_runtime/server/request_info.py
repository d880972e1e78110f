"""What is known about one HTTP request: kept in its ASGI scope, filled as it is served, logged at its end."""

from __future__ import annotations

import re
import time
import uuid
from dataclasses import dataclass, field
from typing import Any, cast

from starlette.datastructures import Headers
from starlette.types import Scope

_SANE = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_KEY = "optpipe"


@dataclass
class RequestInfo:
    """One request.

    Attributes:
        id: the client's X-Request-Id when it is short and plain, else one of our own.
        arrived: in seconds of ``time.monotonic()``.
        facts: what else the log should say (never a prompt, never a key).
        failed: the HTTP status that tells best what went wrong behind an answer that had begun.
    """

    id: str
    arrived: float = field(default_factory=time.monotonic)
    facts: dict[str, Any] = field(default_factory=dict)
    failed: int | None = None


def begin(scope: Scope) -> RequestInfo:
    """Start keeping."""
    wanted = Headers(scope=scope).get("x-request-id", "")
    info = RequestInfo(wanted if _SANE.fullmatch(wanted) else uuid.uuid4().hex)
    scope[_KEY] = info
    return info


def info_of(scope: Scope) -> RequestInfo:
    """What is known about the request of this scope."""
    return cast("RequestInfo", scope[_KEY])
