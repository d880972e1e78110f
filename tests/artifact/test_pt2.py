"""A dense exported program: the reference's logits, in a process that has no optpipe to import."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import optpipe
from optpipe.artifact import load_artifact
from optpipe.artifact.pt2 import export_pt2
from optpipe.errors import ArtifactError

TOKENS = np.random.default_rng(0).integers(0, 250, 40)  # another length than the one that was traced
ALONE = """
import importlib, sys

class NotInstalled:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0].startswith("optpipe"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NotInstalled)
try:
    importlib.import_module("optpipe")
except ModuleNotFoundError:
    pass
else:
    sys.exit("optpipe is here after all")
import numpy as np
import torch
ids = torch.from_numpy(np.load(sys.argv[2]))
program = torch.export.load(sys.argv[1])
calls = [it.target for it in program.graph.nodes if it.op == "call_function"]
foreign = {str(it) for it in calls if isinstance(it, torch._ops.OpOverload) and it.namespace != "aten"}
assert not foreign, foreign
with torch.no_grad():
    logits = program.module()(ids, torch.arange(len(ids)))
np.save(sys.argv[3], logits.numpy())
"""
CASES = [
    ("llama", "paged"), ("gemma2", "paged"), ("gpt-oss", "paged"), ("bloom", "paged"),
    ("llama", "quant,paged"), ("qwen3-moe", "quant,paged"), ("llama", "quant"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "passes"), CASES)
def test_torch_alone_computes_the_references_logits(made, tmp_path, name, passes):
    opened = load_artifact(made(name, passes))
    export_pt2(opened, tmp_path / "pt2")
    np.save(tmp_path / "ids.npy", TOKENS)
    files = [tmp_path / "pt2" / "model.pt2", tmp_path / "ids.npy", tmp_path / "logits.npy"]
    command = [sys.executable, "-I", "-c", ALONE, *map(str, files)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    wanted = optpipe.load(opened, target="reference").logits(TOKENS)
    assert np.abs(np.load(files[2]) - wanted).max() < 2e-5


def test_a_folder_that_is_taken_stays(made, tmp_path):
    (tmp_path / "pt2").mkdir()
    (tmp_path / "pt2" / "mine").write_text("kept")
    with pytest.raises(ArtifactError):
        export_pt2(load_artifact(made("llama", "paged")), tmp_path / "pt2")
    assert (tmp_path / "pt2" / "mine").read_text() == "kept"
