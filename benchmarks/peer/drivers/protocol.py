"""How a driver talks: a JSON object a line on stdin, and one on stdout for each.

A driver is a script that makes a runner and hands it to ``serve``:

    {"do": "prompt", "tokens": 512}                            → {"seconds": …}
    {"do": "decode", "batch": 4, "context": 128, "steps": 64}  → {"seconds": …}   of the steps alone

Whatever libraries print goes to stderr. This file runs in every peer's environment: standard library only.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib import metadata
from typing import Any, Protocol

SEED = 1234


class Runner(Protocol):
    """A peer with a model."""

    packages: tuple[str, ...]

    def prompt(self, tokens: int) -> float:
        """Seconds from a prompt of so many tokens to the first token after it."""
        ...

    def decode(self, batch: int, context: int, steps: int) -> float:
        """Seconds of ``steps`` greedy steps of ``batch`` sequences that have ``context`` tokens each."""
        ...


def arguments() -> dict[str, Any]:
    """What the driver was started with: model, threads, and the variant's settings."""
    found: dict[str, Any] = json.loads(sys.argv[1])
    return found


def tokens(count: int, sequence: int = 0) -> list[int]:
    """Token ids that every vocabulary has, other ones for each sequence."""
    state = SEED + 7919 * sequence
    found = []
    for _ in range(count):
        state = (1103515245 * state + 12345) % (1 << 31)
        found.append(100 + (state >> 8) % 20000)
    return found


def peak_mb() -> int:
    """Peak resident memory of this process in MB (10⁶ bytes)."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 // 1000000


def serve(make: Any) -> None:
    """Make the runner and answer until stdin ends.

    Args:
        make: takes ``arguments()`` and gives a ``Runner``.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    begun = time.perf_counter()
    runner: Runner = make(arguments())
    versions = {name: metadata.version(name) for name in runner.packages}
    load = time.perf_counter() - begun
    answers.write(json.dumps({"versions": versions, "load_seconds": load}) + "\n")
    for line in sys.stdin:
        asked = json.loads(line)
        answers.write(json.dumps(_answer(runner, asked)) + "\n")


def _answer(runner: Runner, asked: dict[str, Any]) -> dict[str, Any]:
    do = asked.pop("do")
    if do == "prompt":
        found: dict[str, Any] = {"seconds": runner.prompt(**asked)}
    elif do == "decode":
        found = {"seconds": runner.decode(**asked)}
    else:
        found = getattr(runner, do)(**asked)
    return found | {"peak_mb": peak_mb()}
