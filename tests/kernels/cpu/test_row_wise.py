"""Artifacts of ``quant{scheme=…}`` on the cpu target: int8 rows run, float8 rows are refused."""

import numpy as np
import pytest

import optpipe
from optpipe.artifact import load_artifact
from optpipe.errors import ArtifactError
from optpipe.targets.reference import ReferenceExecutor
from optpipe.testing import save_tiny
from optpipe_kernels.cpu.row_wise import as_packed
from optpipe_kernels.cpu.target import CpuTarget

TOKENS = np.random.default_rng(0).integers(0, 250, 40)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    home = tmp_path_factory.mktemp("row_wise")
    source = save_tiny("qwen2", home / "model")  # its q, k and v have biases

    def make(scheme):
        folder = home / scheme
        optpipe.optimize(str(source), passes=f"quant{{scheme={scheme}}},paged", output=folder, verify=False)
        return load_artifact(folder)

    return make


def test_rows_of_int8_run_on_the_kernels_of_8_bits(made):
    opened = made("w8a8")
    smooth = ReferenceExecutor(opened.graph(), opened.weights, rounds=False).logits(TOKENS)
    rounded = optpipe.load(opened).logits(TOKENS)
    for load in (
        CpuTarget().load_artifact,
        lambda it, **kwargs: CpuTarget().load(it.program, it.weights, **kwargs),
    ):
        executor = load(opened, threads=1)
        fine = np.abs(executor.logits(TOKENS) - smooth).max()
        executor.close()
        assert fine < 0.02 * np.abs(rounded - smooth).max()  # 15 bits of activations are a step of 1/256
    assert not any(it.op == "optpipe.row_wise_linear" for it in as_packed(opened.program).nodes)


def test_rows_of_float8_are_refused_in_a_sentence(made):
    with pytest.raises(ArtifactError, match=r"multiplies rows of int8, and 'model.layers.0.* has rows of f8"):
        CpuTarget().load_artifact(made("fp8"), threads=1)
