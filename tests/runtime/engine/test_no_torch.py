"""An engine over an executor that needs no torch runs without torch, transformers and all that is heavy."""

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from optpipe_runtime.engine import Engine, EngineConfig
from optpipe_runtime.sampling import SamplingParams
from runtime.tape import TapeExecutor

with Engine.over(TapeExecutor(), config=EngineConfig(kv_memory=100_000)) as engine:
    outputs = engine.generate([[1], [2]], SamplingParams(max_tokens=5, seed=1))
    assert [it.usage.completion_tokens for it in outputs] == [5, 5]
print(sorted({"torch", "transformers", "fastapi", "jinja2"} & set(sys.modules)))
"""


def test_nothing_heavy_is_imported():
    command = [sys.executable, "-W", "error", "-c", PROGRAM, str(Path(__file__).parents[2])]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
