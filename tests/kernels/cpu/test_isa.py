"""A whole model at each instruction set, chosen the way a user does: by the environment of a process."""

import os
import subprocess
import sys

import numpy as np
import pytest

import optpipe
from optpipe_kernels.cpu import library as native

SCRIPT = """
import sys, numpy as np
from optpipe.artifact import load_artifact
from optpipe_kernels.cpu.library import library
from optpipe_kernels.cpu.target import CpuTarget
executor = CpuTarget().load_artifact(load_artifact(sys.argv[1]), threads=2)
np.save(sys.argv[2], executor.logits(np.arange(5, 45)))
loaded = [name for name in ("torch", "transformers") if name in sys.modules]
print(library().isa, *loaded)
"""


def run(folder, out, **environment):
    command = [sys.executable, "-W", "error", "-c", SCRIPT, str(folder), str(out)]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)


@pytest.mark.parametrize("isa", ["avx512bf16", "avx512vnni", "avxvnni", "avx2", "scalar"])
def test_a_model_runs_at_the_level_that_the_environment_names(tiny, tmp_path, isa):
    if native.find() is None or isa not in native.library().isas:
        pytest.skip(f"this processor does not run {isa}")
    folder = tiny("llama-tied", "paged")
    done = run(folder, tmp_path / "logits.npy", OPTPIPE_CPU_ISA=isa)
    assert (done.stdout.split(), done.stderr) == ([isa], "")  # and neither torch nor transformers
    expected = optpipe.load(folder).logits(np.arange(5, 45))
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), expected, rtol=1e-5, atol=2e-5)


def test_a_level_that_does_not_exist_is_an_error(tiny, tmp_path):
    done = run(tiny("llama-tied", "paged"), tmp_path / "logits.npy", OPTPIPE_CPU_ISA="sse9")
    assert done.returncode == 1
    assert "OPTPIPE_CPU_ISA is 'sse9': 'sse9' is not an instruction set" in done.stderr
