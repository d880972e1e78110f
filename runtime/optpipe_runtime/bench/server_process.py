"""A server of an artifact in a process of its own, for as long as it is measured."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from optpipe.errors import EngineError

LISTENING = re.compile(r"listening: (http://\S+)")
STOP_SECONDS = 40.0  # the server's own time for draining, and some


@dataclass(frozen=True)
class ServerProcess:
    """A running server: its address and process id."""

    url: str
    pid: int


@contextlib.contextmanager
def serve(command: Sequence[str], *, timeout: float) -> Iterator[ServerProcess]:
    """Start a server that says on stderr where it listens, as ``optpipe serve`` does; stop it in the end.

    Args:
        command: the command line.
        timeout: seconds that it has for its start.

    Raises:
        EngineError: it ended, or did not say within ``timeout`` where it listens.
    """
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    lines = _Lines(process)
    try:
        yield ServerProcess(lines.wait_listening(timeout), process.pid)
    finally:
        _stop(process)
        lines.join()


def optpipe_serve(model: str, options: Sequence[str] = ()) -> list[str]:
    """The command line of ``optpipe serve`` on a free port."""
    return [sys.executable, "-m", "optpipe", "serve", model, "--port", "0", *options]


class _Lines:
    """Reads a process's stderr, so that it never has to wait; keeps the last lines."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._tail: deque[str] = deque(maxlen=5)
        self._found: queue.Queue[str | None] = queue.Queue()
        self._thread = threading.Thread(target=self._read, name="server-stderr", daemon=True)
        self._thread.start()

    def wait_listening(self, timeout: float) -> str:
        try:
            url = self._found.get(timeout=timeout)
        except queue.Empty:
            raise EngineError(f"The server did not start within {timeout:g} s.", hint=self._last()) from None
        if url is None:
            raise EngineError("The server ended before it listened.", hint=self._last())
        return url

    def join(self) -> None:
        self._thread.join(5)
        if self._process.stderr is not None and not self._thread.is_alive():
            self._process.stderr.close()

    def _read(self) -> None:
        assert self._process.stderr is not None, "it was opened with a pipe"
        for line in self._process.stderr:
            self._tail.append(line.strip())
            if found := LISTENING.search(line):
                self._found.put(found[1])
        self._found.put(None)

    def _last(self) -> str | None:
        said = [it for it in self._tail if it]
        return f"it said: {said[-1]}" if said else None


def _stop(process: subprocess.Popen[str]) -> None:
    """Ask it to drain, then to stop, then stop it."""
    for word, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, word)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
