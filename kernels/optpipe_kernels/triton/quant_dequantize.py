"""A packed weight to 16-bit floats in memory: what cuBLAS reads when rows of x are many.

    W [N, K] = (u − 2^(bits−1)) · scale (+ middle)

Bytes moved: bits/8 a weight in, 2 out. Equals ``optpipe.dialect.quant_linear.dequantize`` after one rounding.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .launch import Launch
from .packing import QuantWeight
from .quant_codes import weights

BLOCK_N = 64  # rows a program: 16 KB of results


@triton.jit
def dequantize_kernel(
    codes_ptr, grid_ptr, scale_ptr, out_ptr, N, K,
    BITS: tl.constexpr, GROUP: tl.constexpr, HAS_MINIMUM: tl.constexpr,
    BF16: tl.constexpr, DRY: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    block = tl.program_id(1)
    k = block * 128 + tl.arange(0, 128)
    inside = n < N
    w = weights(codes_ptr, grid_ptr, n, inside, N, block, BITS, GROUP, HAS_MINIMUM, BF16, DRY)
    if GROUP == 0 and not HAS_MINIMUM:
        w = w.to(tl.float32) * tl.load(scale_ptr + n, mask=inside, other=0.0)[:, None]
    at = n.to(tl.int64)[:, None] * K + k[None, :]
    tl.store(out_ptr + at, w.to(out_ptr.dtype.element_ty), mask=inside[:, None] & (k < K)[None, :])


def launches(weight: QuantWeight, out: torch.Tensor) -> tuple[Launch, ...]:
    """The one launch: out [N, K] contiguous, of the weight's dtype."""
    args = (weight.codes, weight.grid, weight.scale, out, weight.rows, weight.columns)
    constants = {
        "BITS": weight.bits, "GROUP": weight.group, "HAS_MINIMUM": weight.has_minimum, "BLOCK_N": BLOCK_N,
        "BF16": out.dtype is torch.bfloat16, "DRY": out.device.type == "cpu",
    }  # fmt: skip
    grid = (triton.cdiv(weight.rows, BLOCK_N), weight.blocks, 1)
    return (Launch(dequantize_kernel, grid, args, constants, num_stages=1),)


def dequantize(weight: QuantWeight) -> torch.Tensor:
    """The values [N, K] in the weight's dtype."""
    out = torch.empty(weight.rows, weight.columns, dtype=weight.dtype, device=weight.codes.device)
    for launch in launches(weight, out):
        launch.run()
    return out
