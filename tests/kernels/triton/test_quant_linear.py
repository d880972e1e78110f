"""Quantized linear layers against the dialect's body in float64, and what batch_invariant promises."""

from __future__ import annotations

import pytest
import torch

from optpipe.dialect.gated_act import gated_act
from optpipe.errors import KernelError
from optpipe_kernels.triton import quant_linear as op
from optpipe_kernels.triton.packing import repack
from optpipe_kernels.triton.quant_gemv import gemv_kernel
from optpipe_kernels.triton.quant_linear import launches, meta_weight, quant_gate_up, quant_linear
from optpipe_kernels.triton.quant_tile import splits, tile_kernel
from optpipe_kernels.triton.tiles import Tile

from .quant_cases import BOUND, case, error

GRIDS = [
    # rows, columns, bits, group, minimum
    (70, 576, 4, 32, True),
    (33, 320, 4, 64, False),
    (65, 384, 4, 128, False),
    (40, 384, 4, 128, True),
    (40, 96, 4, -1, True),
    (50, 200, 8, -1, False),
    (50, 192, 8, 32, True),
    (64, 128, 8, 64, False),
    (16, 104, 4, -1, False),
    (16, 160, 4, 32, False),
]
PLACES = [("cpu", torch.float16), ("cpu", torch.bfloat16)] + [
    pytest.param(("cuda", dtype), marks=pytest.mark.gpu) for dtype in (torch.float16, torch.bfloat16)
]


@pytest.fixture(params=PLACES, ids=str)
def place(request):
    if request.param[0] == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    return request.param


def draw(*shape, place):
    device, dtype = place
    return torch.randn(*shape).to(dtype).to(device)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("batch_invariant", [True, False])
def test_equals_the_body(grid, place, batch_invariant):
    device, dtype = place
    it = case(*grid, dtype, device)
    for count in (1, 5):
        x = draw(count, grid[1], place=place)
        expected = x.double().cpu() @ it.values.T
        assert error(quant_linear(x, it.weight, batch_invariant=batch_invariant), expected) < BOUND[dtype]


def test_bias_residual_and_leading_dimensions(place):
    device, dtype = place
    it = case(70, 256, 4, 32, True, dtype, device)
    wide = draw(2, 3, 300, place=place)
    x, bias, residual = wide[..., :256], draw(70, place=place), draw(2, 3, 70, place=place)
    actual = quant_linear(x, it.weight, bias, residual)
    assert actual.shape == (2, 3, 70)
    parts = (part.double().cpu() for part in (x @ x.new_zeros(256, 70), bias, residual))
    expected = x.double().cpu() @ it.values.T + sum(parts)
    assert error(actual, expected) < BOUND[dtype]


@pytest.mark.parametrize("kind", ["silu", "gelu_tanh", "relu2"])
@pytest.mark.parametrize("grid", [(140, 256, 4, 32, True), (64, 200, 8, -1, False)], ids=str)
def test_gate_up_equals_the_bodies(grid, kind, place):
    device, dtype = place
    it = case(*grid, dtype, device)
    bias = draw(grid[0], place=place)
    for count in (1, 3):
        x = draw(count, grid[1], place=place)
        both = x.double().cpu() @ it.values.T + bias.double().cpu()
        expected = gated_act(*both.chunk(2, dim=-1), kind=kind)
        for batch_invariant in (True, False):
            actual = quant_gate_up(x, it.weight, bias, kind=kind, batch_invariant=batch_invariant)
            assert error(actual, expected) < 3 * BOUND[dtype]  # a product of two, and relu2 is a square


def same_bits(grid, kind, place, counts):
    """Whether the first rows of a batch have the same bits in smaller ones."""
    device, dtype = place
    it = case(*grid, dtype, device)
    assert splits(grid[0], grid[1]) > 1
    x = draw(counts[-1], grid[1], place=place)
    whole, *others = [
        quant_gate_up(x[:count], it.weight, kind=kind) if kind else quant_linear(x[:count], it.weight)
        for count in reversed(counts)
    ]
    return all(torch.equal(other, whole[: len(other)]) for other in others)


@pytest.mark.parametrize("kind", ["", "silu"])
@pytest.mark.parametrize("grid", [(64, 1024, 4, 32, True), (64, 1024, 8, -1, False)], ids=str)
def test_runs_inside_a_program_give_the_bits_of_runs_in_programs(grid, kind, monkeypatch):
    """The products are numpy's here, whose bits move with the tile: all have the same, but for INSIDE."""

    def tile(kernel, key, *, invariant, rows, bits):
        assert invariant and bits == grid[2]
        sizes = {"BLOCK_N": 32, "BLOCK_M": 16, "GROUP_TILES": 2}
        return Tile(sizes | {"INSIDE": int(rows > 16)})

    monkeypatch.setattr(op, "tile", tile)
    assert same_bits(grid, kind, ("cpu", torch.float16), (1, 16, 20))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("kind", ["", "silu"])
@pytest.mark.parametrize(
    "grid",
    [(4096, 4096, 4, 32, True), (1024, 4096, 8, -1, False), (6144, 4096, 4, 128, False)],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_row_has_the_same_bits_in_any_batch(grid, kind, dtype):
    assert same_bits(grid, kind, ("cuda", dtype), (1, 7, 16, 17, 64, 65, 128, 129, 1024, 2048))


def test_the_order_of_sums_depends_on_the_weight_alone():
    """Over every row of the table: the same runs, blocks of inputs and warpgroups for any number of rows."""
    for columns in (4096, 14336):
        weight = meta_weight(4096, columns, 4, 32, True)
        for key in ("sm_80", "sm_86", "sm_90", "sm_100"):
            seen = set()
            for count in (1, 16, 17, 32, 64, 65, 128, 512, 8192):
                x = torch.empty(count, columns, dtype=torch.bfloat16, device="meta")
                first = launches(x, weight, x.new_empty(count, 4096), key=key)[0]
                assert first.constants["BLOCK_N"] >= 16 * first.num_warps
                assert first.num_warps % 4 == 0
                seen.add((first.kernel, first.constants["SPLITS"], first.args[-1]))
            assert seen == {(tile_kernel, 4, -(-columns // 128 // 4))}


def test_one_row_goes_without_tensor_cores_where_its_bits_may_change():
    weight = meta_weight(4096, 4096, 4, 32, True)
    x = torch.empty(1, 4096, dtype=torch.bfloat16, device="meta")
    kernels = [it.kernel for it in launches(x, weight, x, batch_invariant=False)]
    assert kernels[0] is gemv_kernel
    assert len(kernels) == 2


def test_many_rows_go_through_scratch_where_their_bits_may_change(monkeypatch):
    monkeypatch.setattr(op, "SCRATCH_ROWS", 4)
    it = case(48, 128, 4, 32, True, torch.float16)
    x, bias, residual = (torch.randn(*shape).half() for shape in ((6, 128), (48,), (6, 48)))
    monkeypatch.setattr(op, "launches", None)
    actual = quant_linear(x, it.weight, bias, residual, batch_invariant=False)
    assert error(actual, x.double() @ it.values.T + bias + residual) < 2e-3
    both = x.double() @ it.values.T + bias
    actual = quant_gate_up(x, it.weight, bias, kind="gelu", batch_invariant=False)
    assert error(actual, gated_act(*both.chunk(2, dim=-1), kind="gelu")) < 2e-3


def test_no_rows_give_no_rows():
    it = case(48, 128, 4, 32, True, torch.float16)
    assert quant_linear(torch.empty(0, 128).half(), it.weight).shape == (0, 48)


def test_the_row_kernel_reads_pairs_where_they_lie():
    """A row that starts between two words of x is taken by the tiles."""
    it = case(20, 128, 4, 32, True, torch.float16)
    x = torch.randn(129).half()[1:].view(1, 128)
    actual = quant_linear(x, it.weight, batch_invariant=False)
    assert error(actual, x.double() @ it.values.T) < BOUND[torch.float16]


def test_refuses_what_it_cannot_multiply():
    it = case(20, 128, 4, 32, True, torch.float16)
    with pytest.raises(KernelError, match=r"activations of torch\.float16, got torch\.float32"):
        quant_linear(torch.zeros(1, 128), it.weight)
    with pytest.raises(KernelError, match="takes 128 inputs, got 64"):
        quant_linear(torch.zeros(1, 64).half(), it.weight)
    packed, scale, _ = it.stored
    with pytest.raises(KernelError, match="float16 cannot hold the scales"):
        repack(packed, scale.float() * 1e9, bits=4, group=32, dtype=torch.float16)
    with pytest.raises(KernelError, match="groups of 32, 64 or 128"):
        repack(packed, torch.ones(20, 8).half(), bits=4, group=16, dtype=torch.float16)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_weight_without_data_has_the_shapes_of_one_with(grid):
    real, empty = case(*grid, torch.float16).weight, meta_weight(*grid)
    for name in ("codes", "grid", "scale"):
        one, other = getattr(real, name), getattr(empty, name)
        assert (one is None) == (other is None)
        assert one is None or (one.shape, one.dtype) == (other.shape, other.dtype)
    names = ("rows", "columns", "bits", "group", "has_minimum", "blocks")
    assert [getattr(real, name) for name in names] == [getattr(empty, name) for name in names]
