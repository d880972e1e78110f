"""For every test: one thread, so that suites can run beside each other and sums have one order."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before anything imports torch; subprocesses inherit it


@dataclass(frozen=True)
class Measured:
    """A finished command: what it printed, and the most memory it held at once."""

    returncode: int
    stdout: str
    stderr: str
    peak_bytes: int


def _run_measured(command: list[str]) -> Measured:
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, text=True)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        return Measured(process.returncode, out.read(), err.read(), usage.ru_maxrss * 1024)


@pytest.fixture(scope="session")
def run_measured() -> Callable[[list[str]], Measured]:
    """→ runs a command, waits for it, and says what it took by the operating system's account."""
    return _run_measured
