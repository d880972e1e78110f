"""How long ``optpipe generate`` takes from the start of its process to its first token, by phases.

    interpreter   from the start of the process to the first line of Python
    imports       and reading the command line, to the beginning of the artifact
    artifact      its files, the tokenizer, the prompt's tokens
    plan          from the graph to what the target runs, without
    weights       packing them, or finding them in the cache (the cpu target's; others have them in `plan`)
    engine        the KV cache, threads
    first_token   the prompt's steps, and the first byte on stdout

The phases touch: they add up to the whole.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from optpipe.errors import EngineError

PHASES = ("interpreter", "imports", "artifact", "plan", "weights", "engine", "first_token")
CHILD = "optpipe_runtime.bench.startup_child"


def start_once(arguments: Sequence[str]) -> dict[str, Any]:
    """Run ``optpipe generate`` with these arguments in a fresh process.

    Returns:
        ``phases`` and ``total`` in milliseconds, ``peak_rss_mb``, and which heavy packages were ``imported``.

    Raises:
        EngineError: it failed.
    """
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as errors:
        report = Path(folder) / "report.json"
        spawned = time.monotonic_ns()
        process = subprocess.Popen(
            [sys.executable, "-m", CHILD, str(report), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
        with process:
            assert process.stdout is not None, "it was opened with a pipe"
            os.read(process.stdout.fileno(), 1)
            answered = time.monotonic_ns()
            process.stdout.read()
        if process.returncode != 0 or not report.is_file():
            errors.seek(0)
            raise EngineError(
                "The process that was timed failed.", hint=_reason(errors.read().decode(errors="replace"))
            )
        return _phases(json.loads(report.read_text()), spawned, answered)


def _reason(said: str) -> str | None:
    """The command's own line about an error, else the last line."""
    lines = [line for line in said.splitlines() if line.strip()]
    found = next((line for line in lines if line.startswith("error: ")), lines[-1] if lines else None)
    return None if found is None else f"it said: {found[:300]}"


def _phases(marks: Mapping[str, Any], spawned: int, answered: int) -> dict[str, Any]:
    """From moments to lengths."""
    weights = marks["weights_ns"]
    moments = {
        "interpreter": marks["started"] - spawned,
        "imports": marks["artifact"] - marks["started"],
        "artifact": marks["plan"] - marks["artifact"],
        "plan": marks["engine"] - marks["plan"] - weights,
        "weights": weights,
        "engine": marks["ready"] - marks["engine"],
        "first_token": answered - marks["ready"],
    }
    return {
        "phases": {name: value / 1e6 for name, value in moments.items()},
        "total": (answered - spawned) / 1e6,
        "peak_rss_mb": marks["peak_rss_mb"],
        "imported": marks["imported"],
    }


def measure_startup(
    arguments: Sequence[str],
    *,
    runs: int,
    warmup: int,
    on_end: Callable[[int, int], None] = lambda ended, total: None,
) -> dict[str, Any]:
    """Minimum and median over several processes; the first ``warmup`` fill the caches and do not count."""
    found = []
    for i in range(warmup + runs):
        one = start_once(arguments)
        if i >= warmup:
            found.append(one)
        on_end(i + 1, warmup + runs)
    return {
        "kind": "startup",
        "phases_ms": {name: _spread([it["phases"][name] for it in found]) for name in PHASES},
        "total_ms": _spread([it["total"] for it in found]),
        "peak_rss_mb": _spread([it["peak_rss_mb"] for it in found]),
        "imported": sorted({name for it in found for name in it["imported"]}),
        "runs": runs,
        "warmup": warmup,
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"min": min(values), "median": statistics.median(values)}
