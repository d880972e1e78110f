"""When requests are given up."""

from __future__ import annotations

import heapq
from collections.abc import Mapping

from .request import Request


class Deadlines:
    """Time limits of open requests. It holds no request, so that those that have ended are free."""

    def __init__(self) -> None:
        self._line: list[tuple[float, int, str]] = []  # a heap: when, the first sequence's id, the name

    def add(self, request: Request) -> None:
        """Note a request's limit, if it has one."""
        if request.deadline is not None:
            heapq.heappush(self._line, (request.deadline, request.choices[0].sequence.id, request.id))

    def due(self, now: float, open_requests: Mapping[str, Request]) -> list[Request]:
        """Those whose time is over; they are asked about once.

        Args:
            now: in seconds of ``time.monotonic()``.
            open_requests: by name.
        """
        line, found = self._line, []
        while line and line[0][0] <= now:
            _, first, name = heapq.heappop(line)
            request = open_requests.get(name)
            if request is not None and request.choices[0].sequence.id == first:  # not a later one of its name
                found.append(request)
        if len(line) > 2 * len(open_requests) + 64:  # most of them have ended
            self._line = [it for it in line if it[2] in open_requests]
            heapq.heapify(self._line)
        return found
