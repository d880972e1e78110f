"""``dense_linear``: a linear layer in 16 bits whose rows do not depend on each other.

    y [M, N] = x [M, K] · Wᵀ + bias        computed as yᵀ = W · xᵀ, W [N, K]

One row of x has the same bits whatever M is, which cuBLAS does not promise: for another M it takes another
kernel and another order of sums. As in ``quant_tile``, a sum is cut into as many runs as the weight's shape
asks for, each is one chain of matrix instructions with k ascending in blocks of BLOCK_K, and runs are added
in order: by programs of their own and ``sums_kernel`` where rows are few, inside one program where they are
many.

Bytes moved: the weight once for every BLOCK_M rows, 2·N·K; x once for every BLOCK_N rows of W.
Equals ``torch.nn.functional.linear`` up to the order of sums. y may be float32, for logits.
Source: He et al. 2025, "Defeating Nondeterminism in LLM Inference", for the reasons.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl

from optpipe.errors import KernelError

from .launch import Launch
from .quant_tile import place, splits, sums_kernel
from .tiles import device_key, tile

BLOCK_SUMS = 1024  # columns of the result a program that adds runs


@triton.jit(do_not_specialize=["M"])
def dense_linear_kernel(
    x_ptr, weight_ptr, bias_ptr, out_ptr, sums_ptr, M, N, K, x_stride, weight_stride, per_run,
    SPLITS: tl.constexpr, INSIDE: tl.constexpr, EVEN: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_TILES: tl.constexpr,
):  # fmt: skip
    tile_n, tile_m = place(tl.cdiv(N, BLOCK_N), tl.cdiv(M, BLOCK_M), GROUP_TILES)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tl.arange(0, BLOCK_K)
    n_inside, m_inside = n < N, m < M
    x_at = x_ptr + m.to(tl.int64)[:, None] * x_stride + k[None, :]
    w_at = weight_ptr + n.to(tl.int64)[:, None] * weight_stride + k[None, :]
    blocks = tl.cdiv(K, BLOCK_K)
    total = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    run = tl.program_id(1)
    for at in range(SPLITS if INSIDE else 1):
        begin = (at if INSIDE else run) * per_run
        acc = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
        for block in range(begin, min(begin + per_run, blocks)):
            start = block * BLOCK_K
            if EVEN:
                x = tl.load(x_at + start, mask=m_inside[:, None], other=0.0)
                w = tl.load(w_at + start, mask=n_inside[:, None], other=0.0)
            else:
                inside = (start + k < K)[None, :]
                x = tl.load(x_at + start, mask=m_inside[:, None] & inside, other=0.0)
                w = tl.load(w_at + start, mask=n_inside[:, None] & inside, other=0.0)
            if WIDE:
                x, w = x.to(tl.float32), w.to(tl.float32)
            acc = tl.dot(w, x.T, acc, input_precision="ieee")
        total += acc
    inside = n_inside[:, None] & m_inside[None, :]
    if SPLITS > 1 and not INSIDE:
        tl.store(sums_ptr + (run * M + m).to(tl.int64)[None, :] * N + n[:, None], total, mask=inside)
    else:
        if bias_ptr is not None:
            total += tl.load(bias_ptr + n, mask=n_inside, other=0.0).to(tl.float32)[:, None]
        at = m.to(tl.int64)[None, :] * N + n[:, None]
        tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask=inside)


def dense_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """A linear layer.

    Args:
        x: [..., K].
        weight: [N, K] in x's dtype, rows contiguous.
        bias: [N] or None.
        dtype: of the result; x's when None.

    Returns:
        [..., N].

    Raises:
        KernelError: x and weight disagree.
    """
    if x.shape[-1] != weight.shape[1] or x.dtype is not weight.dtype:
        raise KernelError(
            f"a weight {tuple(weight.shape)} of {weight.dtype} got {tuple(x.shape)} of {x.dtype}"
        )
    flat = x.reshape(-1, x.shape[-1])
    flat = flat if flat.stride(1) == 1 else flat.contiguous()
    out = torch.empty(flat.shape[0], weight.shape[0], dtype=dtype or x.dtype, device=x.device)
    if out.numel():
        for launch in launches(flat, weight, out, bias):
            launch.run()
    return out.view(*x.shape[:-1], weight.shape[0])


def launches(
    x: torch.Tensor,
    weight: torch.Tensor,
    out: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    key: str = "",
) -> tuple[Launch, ...]:
    """One kernel, or two when the sum is cut into runs and rows are few.

    Args:
        x: [M, K], rows contiguous.
        out: [M, N] contiguous, of x's dtype or float32.
        key: of the tile table; the device's own where empty.
    """
    (rows, columns), height = x.shape, weight.shape[0]
    tiles = tile("dense_linear", key or device_key(x.device), rows=rows)
    constants: dict[str, Any] = dict(tiles.constants)
    inside, runs = bool(constants.pop("INSIDE")), splits(height, columns)
    per_run = triton.cdiv(triton.cdiv(columns, constants["BLOCK_K"]), runs)
    sums = None
    if runs > 1 and not inside:
        sums = torch.empty(runs, rows, height, dtype=torch.float32, device=x.device)
    constants |= {
        "SPLITS": runs, "INSIDE": inside and runs > 1, "EVEN": columns % constants["BLOCK_K"] == 0,
        "WIDE": x.dtype is torch.bfloat16 and x.device.type == "cpu",
    }  # fmt: skip
    count = triton.cdiv(height, constants["BLOCK_N"]) * triton.cdiv(rows, constants["BLOCK_M"])
    args = (x, weight, bias, out, sums, rows, height, columns, x.stride(0), weight.stride(0), per_run)
    grid = (count, 1 if sums is None else runs, 1)
    title = f"dense_linear {height}x{columns} rows {rows}"
    first = Launch(dense_linear_kernel, grid, args, constants, tiles.num_warps, tiles.num_stages, title)
    if sums is None:
        return (first,)
    constants = {"KIND": "", "SPLITS": runs, "SCALED": False, "BLOCK": BLOCK_SUMS}
    grid = (rows, triton.cdiv(height, BLOCK_SUMS), 1)
    added = (sums, None, bias, None, out, rows, height, 0)
    return first, Launch(sums_kernel, grid, added, constants, num_stages=1)


def shipped(key: str) -> Iterator[Launch]:
    """A Llama's layers for one row, a batch and a prompt, and its head's logits."""
    meta: dict[str, Any] = {"device": "meta", "dtype": torch.bfloat16}
    for rows in (1, 32, 64, 128, 256):
        for height, columns in ((6144, 4096), (28672, 4096)):
            x, weight = torch.empty(rows, columns, **meta), torch.empty(height, columns, **meta)
            yield launches(x, weight, torch.empty(rows, height, **meta), key=key)[0]
    logits = torch.empty(64, 128256, device="meta")
    head = torch.empty(128256, 4096, **meta)
    yield from launches(torch.empty(64, 4096, **meta), head, logits, key=key)


def expects(launch: Launch, key: str) -> tuple[str, ...]:
    """PTX that a launch's code has: Hopper's matrix instructions, and copies past the registers."""
    if launch.kernel is sums_kernel:
        return ()
    return ("cp.async", "wgmma.mma_async") if key.startswith("sm_90") else ("cp.async",)
