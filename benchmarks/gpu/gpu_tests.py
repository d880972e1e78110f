"""The tests marked ``gpu`` in a process of their own, by several workers where pytest-xdist is there."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
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
    with tempfile.TemporaryFile("w+") as log:
        ending = None
        try:
            subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, timeout=seconds, cwd=ROOT)
        except subprocess.TimeoutExpired:
            ending = f"not over after {seconds:.0f} s"
        log.seek(0)
        lines = log.read().splitlines()
    passed = sum(" PASSED" in line or line.startswith("PASSED") for line in lines)
    failed = dict.fromkeys(line[:160] for line in lines if line.startswith(("FAILED", "ERROR")))
    last = next((line for line in reversed(lines) if line.strip()), "they said nothing")
    found = {"tests": ending or last.strip("= "), "passed": str(passed)}
    return {**found, **{str(number): line for number, line in enumerate(list(failed)[:20], 1)}}
