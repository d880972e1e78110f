"""Time limits: what runs over is interrupted between two of its lines, and what hangs ends the command.

part: its seconds, when no row begins any more; GRACE; OverTimeError is raised, every AGAIN seconds anew
all:  LAST, when the process ends; what was measured is on the page, which is written after every part
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

GRACE = 3.0  # seconds, for the row that is under way
AGAIN = 2.0  # seconds: what raised OverTimeError may have been caught by somebody between
LAST = 538.0  # seconds of all, of nine minutes


class OverTimeError(TimeoutError):
    """The time of a part is over."""


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise OverTimeError from whatever the main thread does when the time and ``GRACE`` are over.

    A call that Python does not return from, such as a kernel that never ends, is not interrupted: ``last`` is
    for those.
    """

    def over(number: int, frame: FrameType | None) -> None:
        raise OverTimeError(f"not measured: {seconds:.0f} s were over")

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds + GRACE, AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def last(seconds: float = LAST) -> Iterator[None]:
    """End the process with status 3 when the time of all parts is over, whatever it waits for."""

    def end() -> None:
        print(f"stopped after {seconds:.0f} s: a call did not return", file=sys.stderr, flush=True)
        os._exit(3)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
