"""What every request passes, outermost first: the log, the guard, the admission."""

from __future__ import annotations

from .admission import Admission
from .guard import Guard
from .request_log import RequestLog

__all__ = ["Admission", "Guard", "RequestLog"]
