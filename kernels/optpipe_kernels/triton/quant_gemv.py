"""The kernel of ``quant_linear`` for one row of x without tensor cores.

    y [N] = W · x       words [BLOCK_N, 16] at a time; products and sums in float32; every column of words
                        has a sum of its own, and a row's 16 are added last

x is read as int32 words of two inputs each: the halves of a weight's word meet neighbouring inputs. Runs and
what follows the sums are ``quant_tile``'s. Bytes moved: the weight once.
Not for ``batch_invariant``: the order of sums is another than the tiles'.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .activations import activate
from .packing import PIECE
from .quant_codes import grid_pair, piece, sixteen, words_of
from .quant_tile import finish


@triton.jit
def block_dots(
    acc, x_ptr, codes_ptr, grid_ptr, rows, inside, N, K, block,
    BITS: tl.constexpr, GROUP: tl.constexpr, HAS_MINIMUM: tl.constexpr,
    BF16: tl.constexpr, DRY: tl.constexpr,
):  # fmt: skip
    """acc [R, 16] float32 and the products of 128 inputs."""
    PIECES: tl.constexpr = 16 // BITS
    c = tl.arange(0, 16)
    for slab in tl.static_range(4 // PIECES):
        words = words_of(codes_ptr, rows, inside, N, block * (4 // PIECES) + slab)
        for at in tl.static_range(PIECES):
            pair = block * 64 + (slab * PIECES + at) * 16 + c
            x = tl.load(x_ptr + pair, mask=pair * 2 < K, other=0)
            even, odd = (
                sixteen(x, BF16, DRY).to(tl.float32),
                sixteen(x >> 16, BF16, DRY).to(tl.float32),
            )
            both = piece(words, at, BITS, BF16, DRY).to(tl.float32)
            low, high = tl.split(both.reshape(both.shape[0], 16, 2))
            part = tl.fma(high, odd[None, :].broadcast_to(high.shape), low * even[None, :])
            if GROUP > 0 or HAS_MINIMUM:
                scale, middle = grid_pair(
                    grid_ptr, rows, inside, N, block, slab * PIECES + at, GROUP, HAS_MINIMUM, BF16, DRY
                )  # fmt: skip
                if HAS_MINIMUM:
                    sums = (even + odd)[None, :].broadcast_to(part.shape)
                    acc = tl.fma(middle.to(tl.float32)[:, None].broadcast_to(part.shape), sums, acc)
                part = part * scale.to(tl.float32)[:, None]
            acc += part
    return acc


@triton.jit
def gemv_kernel(
    x_ptr, codes_ptr, grid_ptr, scale_ptr, bias_ptr, residual_ptr, out_ptr, sums_ptr, N, K, per_run,
    BITS: tl.constexpr, GROUP: tl.constexpr, HAS_MINIMUM: tl.constexpr, KIND: tl.constexpr,
    BF16: tl.constexpr, DRY: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    GATED: tl.constexpr = KIND != ""
    SCALED: tl.constexpr = GROUP == 0 and not HAS_MINIMUM
    width = N // 2 if GATED else N
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = n < width
    run = tl.program_id(1)
    acc = tl.zeros((BLOCK_N, 16), dtype=tl.float32)
    acc_up = tl.zeros((BLOCK_N, 16), dtype=tl.float32)
    for block in tl.range(run * per_run, min(run * per_run + per_run, tl.cdiv(K, 128)), num_stages=STAGES):
        acc = block_dots(
            acc, x_ptr, codes_ptr, grid_ptr, n, inside, N, K, block, BITS, GROUP, HAS_MINIMUM, BF16, DRY
        )  # fmt: skip
        if GATED:
            acc_up = block_dots(
                acc_up, x_ptr, codes_ptr, grid_ptr, n + width, inside, N, K, block,
                BITS, GROUP, HAS_MINIMUM, BF16, DRY,
            )  # fmt: skip
    total, total_up = tl.sum(acc, axis=1), tl.sum(acc_up, axis=1)
    if sums_ptr is not None:
        tl.store(sums_ptr + run * N + n, total, mask=inside)
        if GATED:
            tl.store(sums_ptr + run * N + width + n, total_up, mask=inside)
    else:
        y = finish(total, scale_ptr, bias_ptr, n, inside, SCALED)
        if GATED:
            y = activate(y, KIND) * finish(total_up, scale_ptr, bias_ptr, n + width, inside, SCALED)
        if residual_ptr is not None:
            y = y + tl.load(residual_ptr + n, mask=inside, other=0.0).to(tl.float32)
        tl.store(out_ptr + n, y.to(out_ptr.dtype.element_ty), mask=inside)


def words(x: torch.Tensor) -> torch.Tensor | None:
    """A row [1, K] as int32 words of two inputs, or None where it does not lie on their borders."""
    even = x.shape[1] % PIECE == 0 and x.storage_offset() % 2 == 0
    return x.view(torch.int32) if even and x.shape[0] == 1 else None
