"""The tests marked ``gpu`` in a process of their own, by several workers where pytest-xdist is there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[2]
WORKERS = str(min(16, os.cpu_count() or 1))


def gpu_tests(seconds: float, *, collect_only: bool = False) -> dict[str, str]:
    """Run them → what came of them, and those that failed.

    Args:
        seconds: that they may take; what they said until then counts.
        collect_only: only find them, where there is no GPU.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", "-rfE"]
    if find_spec("xdist") is not None:
        command += ["-n", "0" if collect_only else WORKERS]
    command += ["--collect-only"] if collect_only else ["-v"]
    command += ["tests/kernels/triton", "tests/kernels/cuda"]
    lines, over = said(command, seconds)
    passed = sum(" PASSED" in line or line.startswith("PASSED") for line in lines)
    failed = dict.fromkeys(line[:160] for line in lines if line.startswith(("FAILED", "ERROR")))
    last = next((line for line in reversed(lines) if line.strip()), "they said nothing")
    ending = f"not over after {seconds:.0f} s" if over else last.strip("= ")
    found = {"tests": ending, "passed": str(passed)}
    return {**found, **{str(number): line for number, line in enumerate(list(failed)[:20], 1)}}


def said(command: Sequence[str], seconds: float) -> tuple[list[str], bool]:
    """What a command printed, and whether its time was over: then it is ended with all that it started."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, start_new_session=True
        )
        try:
            process.wait(seconds)
            over = False
        except BaseException as error:  # workers that stay would run beside what is measured next
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            over = True
        log.seek(0)
        return log.read().splitlines(), over
