"""What every request passes, outermost first: the log, the guard, the gate."""

from __future__ import annotations

from .gate import Gate
from .guard import Guard
from .request_log import RequestLog

__all__ = ["Gate", "Guard", "RequestLog"]
