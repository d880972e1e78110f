"""Rows of 8 bits on the cuda target: which steps there are, and that they compute what the reference does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import optpipe
from optpipe.errors import CapacityError
from optpipe.program.parser import parse_program
from optpipe.targets.reference import ReferenceExecutor
from optpipe_kernels.cuda.fusion import lower
from optpipe_kernels.cuda.recipes import EightBits, Grid
from optpipe_kernels.cuda.row_wise import check_device
from optpipe_kernels.cuda.target import CudaTarget

TOKENS = np.random.default_rng(0).integers(0, 250, 12)
LAYER = """optpipe.program 1
input %x: f32[T, 16]
input %block_tables: i32[B, M]
cache %k_cache.0: f32[P, 16, 1, 8]
cache %v_cache.0: f32[P, 16, 1, 8]
weight @n: f32[16] stored f32
weight @q: {kind}[16, 16] stored {kind}
weight @q_scale: f32[16, 1] stored f32
weight @k: {kind}[8, 16] stored {kind}
weight @k_scale: f32[8, 1] stored f32
%0: f32[T, 16], %1: f32[T, 16] = optpipe.add_rms_norm(%x, %x, @n, eps=1e-5)
%2: f32[T, 16] = optpipe.row_wise_linear(%0, @q, @q_scale, None)
%3: f32[T, 8] = optpipe.row_wise_linear(%0, @k, @k_scale, None)
"""


def steps_of(body):
    return lower(parse_program(LAYER.format(kind="i8") + body)).steps


def test_layers_of_one_input_are_one_product_of_codes_that_the_norm_writes():
    norm, product, *_ = steps_of("%4: f32[T, 24] = aten.cat([%2, %3], 1)\nreturn %4\n")
    assert (norm.kernel, product.kernel) == ("add_rms_norm_codes", "row_wise_codes")
    assert [str(it.type) for it in norm.results] == ["i8[T, 16]", "f32[T]", "f32[T, 16]"]
    assert product.args[:3] == (
        *norm.results[:2],
        EightBits((Grid("q", "q_scale"), Grid("k", "k_scale")), "i8"),
    )
    assert product.windows == ((0, 16), (16, 24))


def test_a_norm_that_others_read_stays_what_it_is():
    norm, product, *_ = steps_of("%4: f32[T, 16] = aten.add.Tensor(%0, %2)\nreturn %4\n")
    assert (norm.kernel, product.kernel) == ("add_rms_norm", "row_wise_linear")


@pytest.fixture(params=["w8a8", "fp8"])
def artifact(request, tiny):
    return tiny("qwen2", f"quant{{scheme={request.param}}},paged")


def distance(found, exact):
    return np.linalg.norm(found - exact) / np.linalg.norm(exact)


@pytest.mark.parametrize("kernels", ["bodies", "triton"])
def test_the_target_computes_what_the_reference_does(artifact, kernels):
    """Float32's noise turns a code over now and then; leaving the rounding out moves far more."""
    exact = optpipe.load(artifact).logits(TOKENS)
    smooth = ReferenceExecutor(artifact.graph(), artifact.weights, rounds=False).logits(TOKENS)
    executor = CudaTarget().load_artifact(artifact, device="cpu", kernels=kernels, batch_invariant=False)
    assert {"add_rms_norm_codes", "row_wise_codes", "row_wise_linear"} <= {
        it.kernel for it in executor.lowered.steps
    }
    found = executor.logits(TOKENS)
    assert distance(found, exact) < 0.1 * distance(smooth, exact)
    assert ("row_wise_linear" in executor.operations.on_bodies) == (kernels == "bodies")


def test_rows_of_8_bits_keep_batch_invariance(artifact):
    executor = CudaTarget().load_artifact(artifact, device="cpu", dtype="f16")
    assert executor.batch_invariant
    exact = optpipe.load(artifact).logits(TOKENS[:4])
    assert distance(executor.logits(TOKENS[:4]), exact) < 0.05  # 16 bits turn more codes over


def test_a_gpu_without_float8_is_told(monkeypatch):
    recipes, place = [EightBits((), "f8")], torch.device("cuda:0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    with pytest.raises(CapacityError, match=r"takes compute capability 8.9; cuda:0 has 8.6"):
        check_device(recipes, place)
    check_device([EightBits((), "i8")], place)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    check_device(recipes, place)
