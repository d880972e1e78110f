"""The engine's own tests over the onnx target, each as it stands: see ``tests/runtime/onnx_tape.py``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

ROOT = Path(__file__).resolve().parents[3]
ENGINE = ROOT / "tests" / "runtime" / "engine"
QUICK = ("test_lifecycle.py", "test_text.py", "test_chaos.py")
OTHER_TARGETS = ("test_cpu.py", "test_cpu_layers.py", "test_no_torch.py", "test_reference.py")


def passed(files):
    """How many tests of some files pass over ONNX Runtime; all that are not skipped must."""
    chosen = [str(ENGINE / it) for it in files]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen]
    environment = {**os.environ, "OPTPIPE_ENGINE_TESTS": "onnx"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-1000:]
    return int(re.search(r"(\d+) passed", run.stdout)[1])


def test_requests_texts_and_chaos():
    assert passed(QUICK) >= 40


@pytest.mark.slow  # a minute
def test_all_others():
    files = {it.name for it in ENGINE.glob("test_*.py")} - {*QUICK, *OTHER_TARGETS}
    assert passed(sorted(files)) >= 120
