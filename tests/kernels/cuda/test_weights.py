"""Recipes made into tensors: joined, turned, widened; and options of the target."""

from __future__ import annotations

import pytest
import torch

from optpipe.errors import CapacityError, OptpipeError, RequestError
from optpipe.weights.store import TensorWeight
from optpipe_kernels.cuda import cache
from optpipe_kernels.cuda.fusion import lower
from optpipe_kernels.cuda.operations import Operations
from optpipe_kernels.cuda.recipes import Dense, Experts, Grid, Joined, Plain, Quantized, Rows, names_of
from optpipe_kernels.cuda.target import CudaTarget, TritonKernels, compute_dtype
from optpipe_kernels.cuda.weights import load_weights, recipes_of

CPU = torch.device("cpu")
STORED = {
    "a": torch.randn(3, 4).to(torch.bfloat16),
    "b": torch.randn(2, 4).to(torch.bfloat16),
    "conv": torch.randn(4, 5),
    "bias": torch.randn(2).to(torch.bfloat16),
    "freq": torch.randn(4),
    "ids": torch.arange(3),
    "packed": torch.arange(6, dtype=torch.int32).reshape(3, 2),
    "scale": torch.rand(3, 2).half(),
    "minimum": torch.rand(3, 2).half(),
}


def load(*recipes, dtype=torch.float16, **options):
    read = {name: TensorWeight(it) for name, it in STORED.items()}
    return load_weights(recipes, read, CPU, Operations(dtype, **options))


def test_matrices_are_joined_and_turned_in_the_compute_dtype():
    joined, turned = Dense(("a", "b")), Dense(("conv",), transposed=True)
    found = load(joined, turned)
    assert found[joined].dtype is torch.float16
    torch.testing.assert_close(found[joined], torch.cat((STORED["a"], STORED["b"])).half())
    torch.testing.assert_close(found[turned], STORED["conv"].T.half())
    assert found[turned].is_contiguous()


def test_biases_that_lack_are_zeros():
    recipe = Joined(((None, 3), ("bias", 2)))
    torch.testing.assert_close(load(recipe)[recipe], torch.cat((torch.zeros(3), STORED["bias"])).half())


@pytest.mark.parametrize(
    ("recipe", "dtype"),
    [
        (Plain("freq"), torch.float32),
        (Plain("bias"), torch.float16),
        (Plain("bias", wide=True), torch.float32),
        (Plain("ids"), torch.int64),
    ],
)
def test_plain_tensors_keep_what_they_need(recipe, dtype):
    assert load(recipe)[recipe].dtype is dtype


def test_grids_stay_as_they_are_for_rows_and_bodies():
    grid = Grid("packed", "scale", "minimum")
    whole, rows = Quantized((grid, grid), 4, 8), Rows(grid)
    found = load(whole, rows, triton=False)
    assert [tuple(it.shape) for it in found[whole]] == [(6, 2)] * 3
    assert all(it is not None for it in found[rows])


def test_a_grid_that_the_kernels_do_not_know_is_left_to_the_body():
    recipe = Quantized((Grid("packed", "scale"),), 4, 8)  # groups of 8
    operations = Operations(torch.float16)
    read = {name: TensorWeight(it) for name, it in STORED.items()}
    assert isinstance(load_weights([recipe], read, CPU, operations)[recipe], tuple)
    assert operations.on_bodies == {"quant_linear"}


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("interleaved", [False, True])
def test_experts_come_in_the_order_that_kernels_read(transposed, interleaved):
    gates, ups = torch.randn(3, 4, 8).unbind(0), torch.randn(3, 4, 8).unbind(0)
    expected = torch.stack([torch.cat(both) for both in zip(gates, ups, strict=True)])
    rows = [torch.stack(both, 1).flatten(0, 1) for both in zip(gates, ups, strict=True)]
    stored = torch.stack(rows) if interleaved else expected
    stored = stored.transpose(1, 2).contiguous() if transposed else stored
    recipe = Experts("gate_up", transposed, interleaved)
    found = load_weights([recipe], {"gate_up": TensorWeight(stored)}, CPU, Operations(torch.float16))[recipe]
    assert found.is_contiguous()
    assert torch.equal(found, expected.half())
    biases = Experts("bias", False, interleaved)
    held = {"bias": TensorWeight(torch.arange(12.0).view(2, 6))}
    row = load_weights([biases], held, CPU, Operations(torch.float16))[biases][0].tolist()
    assert row == ([0, 2, 4, 1, 3, 5] if interleaved else [0, 1, 2, 3, 4, 5])


def test_every_weight_of_a_model_is_read_once(tiny):
    lowered = lower(tiny("llama-tied").program)
    recipes = recipes_of(lowered)
    assert len(set(recipes)) == len(recipes)
    names = [name for it in recipes for name in names_of(it)]
    assert len(names) == len(set(names))  # the tied head is the embedding's own tensor


def test_dtypes_by_name():
    assert compute_dtype("auto", CPU) is torch.float32
    assert compute_dtype("bf16", CPU) is torch.bfloat16
    assert compute_dtype(torch.float16, CPU) is torch.float16
    with pytest.raises(RequestError, match="i8"):
        compute_dtype("i8", CPU)


def test_bytes_of_a_block_count_the_scales_of_eight_bits(tiny):
    spec = lower(tiny("llama").program).cache_spec
    for name in ("f16", "bf16", "f8", "i8"):
        held = cache.allocate(spec, 3, name, CPU)
        parts = [part for it in held.values() for part in (it.data, it.scale) if part is not None]
        assert sum(part.nbytes for part in parts) == 3 * cache.block_bytes(spec, name)


def test_a_cache_that_does_not_fit_is_said_so(tiny):
    with pytest.raises(CapacityError, match="blocks does not fit"):
        cache.allocate(lower(tiny("llama").program).cache_spec, 1 << 48, "f16", CPU)


def test_options_that_cannot_be(tiny):
    with pytest.raises(RequestError, match="fast"):
        CudaTarget().load_artifact(tiny("llama"), device="cpu", kernels="fast")
    with pytest.raises(OptpipeError, match="cannot be used"):
        CudaTarget().load_artifact(tiny("llama"), device="cuda:99")


def test_a_machine_without_a_gpu_says_so(monkeypatch):
    monkeypatch.setattr("optpipe_kernels.cuda.target.gpus", lambda: 0)
    assert "GPU" in TritonKernels().why_not()
    assert CudaTarget().why_not() == TritonKernels().why_not()
    monkeypatch.setattr("optpipe_kernels.cuda.target.gpus", lambda: 2)
    assert TritonKernels().why_not() is None
    assert TritonKernels().details()["gpus"] == 2
