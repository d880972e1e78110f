"""Has a grammar tried by a child process, which may be killed when it takes too long or too much memory.

The child (``grammar_child.py``) sleeps on a pipe between requests. One line of JSON goes in, one comes out:

    {"tokenizer": "…", "vocab_size": 49152, "eos": [2]}     → {"error": null, "bytes": 0}
    {"kind": "regex", "source": "("}                        → {"error": "unclosed group", "bytes": 0}
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import time
import weakref
from typing import Any

from optpipe.errors import EngineError

CHILD = __name__.rpartition(".")[0] + ".grammar_child"
CLOSED = "Grammars are not compiled any more: the engine is closed."
START_SECONDS = 60.0  # a large tokenizer takes seconds to read


class Checker:
    """The child process, as its parent sees it. One grammar at a time; others wait for their turn.

    Args:
        setup: the first line, without its end.
        seconds: that a grammar may take.
    """

    def __init__(self, setup: str, seconds: float) -> None:
        self._setup = setup
        self._seconds = seconds
        self._child: subprocess.Popen[bytes] | None = None
        self._finalizer: weakref.finalize[Any, Any] | None = None
        self._turn = threading.Lock()
        self._closed = False

    def start(self) -> None:
        """Start the child ahead of the first check, which says so if that does not work."""
        with contextlib.suppress(EngineError), self._turn:
            self._started()

    def check(self, kind: str, source: str) -> tuple[str | None, int]:
        """What is wrong with a grammar, or None; and about how many bytes it takes.

        Raises:
            EngineError: the child process cannot start, or was closed.
        """
        with self._turn:
            child = self._started()
            answer = _ask(child, json.dumps({"kind": kind, "source": source}), self._seconds)
            if answer is not None:
                return answer["error"], answer["bytes"]
            slow = child.poll() is None
            self._drop()
        if self._closed:
            raise EngineError(CLOSED)
        threading.Thread(target=self.start, daemon=True).start()  # while whoever asked has its answer
        return f"it takes over {self._seconds:g} s" if slow else "it takes too much memory", 0

    def close(self) -> None:
        """Let the child go for good, whatever it is at."""
        self._closed = True
        self._drop()

    def _drop(self) -> None:
        if self._finalizer is not None:
            self._finalizer()
        self._child = self._finalizer = None

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is not None and self._child.poll() is None:
            return self._child
        self._drop()
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the parent, which may still have grammars to compile
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        )
        self._child, self._finalizer = child, weakref.finalize(self, _end, child)
        answer = None if self._closed else _ask(child, self._setup, START_SECONDS)
        if answer is None or answer["error"] is not None:
            self._drop()
            raise EngineError(
                CLOSED
                if self._closed
                else "The process that checks grammars did not start, so none can be used."
            )
        return child


def _ask(child: subprocess.Popen[bytes], line: str, seconds: float) -> dict[str, Any] | None:
    """Send a line and wait for one; None when the child dies or the time is over."""
    assert child.stdin is not None and child.stdout is not None, f"{child = } has no pipes"
    until = time.monotonic() + seconds
    try:
        child.stdin.write(line.encode() + b"\n")
        child.stdin.flush()
        answer = b""
        while not answer.endswith(b"\n"):
            left = until - time.monotonic()
            if left <= 0 or not select.select([child.stdout], [], [], left)[0]:
                return None
            part = os.read(child.stdout.fileno(), 65536)
            if not part:
                child.wait()
                return None
            answer += part
    except (OSError, ValueError):  # the pipe is broken, or was closed under our hands
        return None
    found: dict[str, Any] = json.loads(answer)
    return found


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):  # what was not written is of no use to the dead
                pipe.close()
