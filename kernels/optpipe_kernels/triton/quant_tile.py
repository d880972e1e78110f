"""The kernels of ``quant_linear`` and ``quant_gate_up`` for any number of rows, on tensor cores.

    outᵀ [N, M] = W [N, K] · xᵀ [K, M]      W comes out of registers (``quant_codes``), x of shared memory
    gated        act(Wg·xᵀ) · (Wu·xᵀ)       Wg, Wu: the upper and the lower half of one weight's rows

One row of x has the same bits whatever M is. Its sum is cut into SPLITS runs of whole blocks of 128 inputs,
as many as the weight's shape asks for (``splits``); a run is one chain of matrix instructions, k ascending;
runs are added in order, then come scale, bias, activation and residual, each rounded to float32. Few rows:
every run has programs of its own that write float32 sums [SPLITS, M, N], and ``sums_kernel`` adds them. Many
rows: a program goes through the runs itself. Tile sizes and the split between the two move no bit.

Bytes moved: the weight once for every BLOCK_M rows, x once for every BLOCK_N rows of W, and with programs
for the runs 8·SPLITS·M·N.
Source: Frantar et al. 2024, "MARLIN"; wgmma takes only its left operand from registers (PTX ISA 9.7.15).
"""

from __future__ import annotations

import triton
import triton.language as tl

from .activations import activate
from .quant_codes import weights

PROCESSORS = 132  # of an H100: what the number of runs is balanced for, on every chip


def splits(rows: int, columns: int) -> int:
    """Into how many runs the inputs are cut: by the weight's shape alone.

    Enough that 64 rows a program make two programs a multiprocessor, and few that the last wave is full.

    >>> splits(28672, 4096), splits(4096, 4096), splits(6144, 4096), splits(576, 576)
    (1, 4, 4, 1)
    """
    tiles, blocks = -(-rows // 64), -(-columns // 128)
    if tiles >= 2 * PROCESSORS:
        return 1
    most = max(1, min(8, blocks // 4, -(-3 * PROCESSORS // tiles)))
    least = min(most, -(-9 * PROCESSORS // (5 * tiles)))
    return min(
        range(least, most + 1), key=lambda runs: (-(-tiles * runs // PROCESSORS) / (tiles * runs), runs)
    )


@triton.jit
def place(rows_of_tiles, columns_of_tiles, GROUP_TILES: tl.constexpr):
    """Which tile of [N, M] a program has: GROUP_TILES tiles of M stay together, so that W is found in L2."""
    at = tl.program_id(0)
    width = GROUP_TILES * rows_of_tiles
    first = (at // width) * GROUP_TILES
    height = min(columns_of_tiles - first, GROUP_TILES)
    return (at % width) // height, first + (at % width) % height


@triton.jit
def inputs(x_ptr, m, inside, x_stride, K, block, EVEN: tl.constexpr, BF16: tl.constexpr, DRY: tl.constexpr):
    """x [BLOCK_M, 128] of one block; 0 outside."""
    k = block * 128 + tl.arange(0, 128)
    at = m.to(tl.int64)[:, None] * x_stride + k[None, :]
    mask = inside[:, None] if EVEN else inside[:, None] & (k < K)[None, :]
    x = tl.load(x_ptr + at, mask=mask, other=0.0)
    return x.to(tl.float32) if BF16 and DRY else x


@triton.jit
def finish(total, scale_ptr, bias_ptr, n, inside, SCALED: tl.constexpr):
    """Scale and bias of sums float32 whose rows of W are n, broadcast against them."""
    if SCALED:
        total = total * tl.load(scale_ptr + n, mask=inside, other=0.0)
    if bias_ptr is not None:
        total = total + tl.load(bias_ptr + n, mask=inside, other=0.0).to(tl.float32)
    return total


@triton.jit(do_not_specialize=["M"])
def tile_kernel(
    x_ptr, codes_ptr, grid_ptr, scale_ptr, bias_ptr, residual_ptr, out_ptr, sums_ptr,
    M, N, K, x_stride, residual_stride, per_run,
    BITS: tl.constexpr, GROUP: tl.constexpr, HAS_MINIMUM: tl.constexpr, KIND: tl.constexpr,
    SPLITS: tl.constexpr, INSIDE: tl.constexpr, EVEN: tl.constexpr, BF16: tl.constexpr, DRY: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, GROUP_TILES: tl.constexpr,
):  # fmt: skip
    GATED: tl.constexpr = KIND != ""
    width = N // 2 if GATED else N  # of the result
    tile_n, tile_m = place(tl.cdiv(width, BLOCK_N), tl.cdiv(M, BLOCK_M), GROUP_TILES)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n_inside, m_inside = n < width, m < M
    blocks = tl.cdiv(K, 128)
    total = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    total_up = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    run = tl.program_id(1)
    for at in range(SPLITS if INSIDE else 1):
        begin = (at if INSIDE else run) * per_run
        acc = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
        acc_up = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
        for block in range(begin, min(begin + per_run, blocks)):
            x = inputs(x_ptr, m, m_inside, x_stride, K, block, EVEN, BF16, DRY)
            w = weights(
                codes_ptr, grid_ptr, n, n_inside, N, block, BITS, GROUP, HAS_MINIMUM, BF16, DRY
            )  # fmt: skip
            acc = tl.dot(w, x.T, acc)
            if GATED:
                w = weights(
                    codes_ptr, grid_ptr, n + width, n_inside, N, block, BITS, GROUP, HAS_MINIMUM, BF16, DRY
                )  # fmt: skip
                acc_up = tl.dot(w, x.T, acc_up)
        total += acc
        if GATED:
            total_up += acc_up
    inside = n_inside[:, None] & m_inside[None, :]
    if SPLITS > 1 and not INSIDE:
        at = (run * M + m).to(tl.int64)[None, :] * N + n[:, None]
        tl.store(sums_ptr + at, total, mask=inside)
        if GATED:
            tl.store(sums_ptr + at + width, total_up, mask=inside)
    else:
        SCALED: tl.constexpr = GROUP == 0 and not HAS_MINIMUM
        y = finish(total, scale_ptr, bias_ptr, n[:, None], n_inside[:, None], SCALED)
        if GATED:
            up = finish(total_up, scale_ptr, bias_ptr, (n + width)[:, None], n_inside[:, None], SCALED)
            y = activate(y, KIND) * up
        if residual_ptr is not None:
            at = m.to(tl.int64)[None, :] * residual_stride + n[:, None]
            y = y + tl.load(residual_ptr + at, mask=inside, other=0.0).to(tl.float32)
        at = m.to(tl.int64)[None, :] * width + n[:, None]
        tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["M"])
def sums_kernel(
    sums_ptr, scale_ptr, bias_ptr, residual_ptr, out_ptr, M, N, residual_stride,
    KIND: tl.constexpr, SPLITS: tl.constexpr, SCALED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add the runs [SPLITS, M, N] of one row in order, and finish it."""
    GATED: tl.constexpr = KIND != ""
    width = N // 2 if GATED else N
    m = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = n < width
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    total_up = tl.zeros((BLOCK,), dtype=tl.float32)
    for run in tl.static_range(SPLITS):
        at = (run * M + m) * N + n
        total += tl.load(sums_ptr + at, mask=inside, other=0.0)
        if GATED:
            total_up += tl.load(sums_ptr + at + width, mask=inside, other=0.0)
    y = finish(total, scale_ptr, bias_ptr, n, inside, SCALED)
    if GATED:
        up = finish(total_up, scale_ptr, bias_ptr, n + width, inside, SCALED)
        y = activate(y, KIND) * up
    if residual_ptr is not None:
        y = y + tl.load(residual_ptr + m * residual_stride + n, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + m * width + n, y.to(out_ptr.dtype.element_ty), mask=inside)
