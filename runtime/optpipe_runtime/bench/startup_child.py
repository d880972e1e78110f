"""The process that ``optpipe bench startup`` times: ``optpipe generate`` with marks on its way.

    python -m optpipe_runtime.bench.startup_child REPORT.json MODEL PROMPT [OPTION…]

It runs the command itself, with four functions wrapped that begin or end a phase, so that what is timed is
what people run.
"""

import time

STARTED = time.monotonic_ns()

import functools  # noqa: E402 - the time comes first
import importlib  # noqa: E402
import json  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

# (module, class or None, function, mark when it begins, mark when it ends); weights are a length, see below.
MARKS = (
    ("optpipe.artifact.load", None, "load_artifact", "artifact", None),
    ("optpipe.loading", None, "load", "plan", "engine"),
    ("optpipe_runtime.engine.engine", "Engine", "_start", None, "ready"),
)
WEIGHTS = ("optpipe_kernels.cpu.target", "cached_weights")
HEAVY = ("torch", "transformers")


def main(report: Path, arguments: list[str]) -> int:
    """Run the command, then write the marks."""
    marks: dict[str, int] = {"started": STARTED, "weights_ns": 0}
    for module, owner, name, begins, ends in MARKS:
        place: Any = importlib.import_module(module)
        place = place if owner is None else getattr(place, owner)
        setattr(place, name, _marked(getattr(place, name), marks, begins, ends))
    target = importlib.import_module(WEIGHTS[0])
    setattr(target, WEIGHTS[1], _timed(getattr(target, WEIGHTS[1]), marks))
    from optpipe.cli.main import run

    code = run(["generate", *arguments])
    if code == 0:
        from optpipe_runtime.bench.memory import peak_rss_mb

        facts = {"imported": [name for name in HEAVY if name in sys.modules], "peak_rss_mb": peak_rss_mb()}
        report.write_text(json.dumps(marks | facts))
    return code


def _marked(
    function: Callable[..., Any], marks: dict[str, int], begins: str | None, ends: str | None
) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        if begins is not None:
            marks.setdefault(begins, time.monotonic_ns())
        try:
            return function(*arguments, **options)
        finally:
            if ends is not None:
                marks[ends] = time.monotonic_ns()

    return call


def _timed(function: Callable[..., Any], marks: dict[str, int]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        begin = time.monotonic_ns()
        try:
            return function(*arguments, **options)
        finally:
            marks["weights_ns"] += time.monotonic_ns() - begin

    return call


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
