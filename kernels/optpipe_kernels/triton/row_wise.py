"""``row_wise_linear``: 8-bit activations times 8-bit weights, one scale a row of each.

    y [M, N] = (a · Bᵀ) · scale_a [M] · scale_b [N] + bias (+ residual)

    int8  a, B int8, sums in int32: exact, so no order of sums is seen
    fp8   a, B float8 e4m3; sums in float32, kept to about 14 bits by the tensor cores within PROMOTE inputs

As in ``quant_tile``, weights are the left operand: outᵀ = B · aᵀ, 64 rows of them and more a tile, any
number of a's beside them; and a sum is one chain, k ascending, whatever the tile. Bytes moved: B once for
every BLOCK_M rows of a. With ``batch_invariant=False`` float8 goes to ``torch._scaled_mm`` (cuBLAS).
Source: Micikevicius et al. 2022, "FP8 formats for deep learning"; Dettmers et al. 2022, "LLM.int8()".
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from optpipe.errors import KernelError

from .launch import Launch
from .quant_tile import place
from .rows import CODES, LARGEST, Quantization, as_bytes, quantize_rows, tile_of
from .tiles import device_key, tile

PROMOTE = 128  # inputs of float8 between two sums in full float32


@triton.jit(do_not_specialize=["rows"])
def quantize_kernel(
    x_ptr, codes_ptr, scale_ptr, rows, width, x_stride,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, LARGEST: tl.constexpr, FP8: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    inside = (row < rows)[:, None] & (column < width)[None, :]
    at = row.to(tl.int64)[:, None] * x_stride + column[None, :]
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    codes, scale = quantize_rows(x, LARGEST, FP8)
    tl.store(codes_ptr + row.to(tl.int64)[:, None] * width + column[None, :], codes, mask=inside)
    tl.store(scale_ptr + row, scale, mask=row < rows)


@triton.jit(do_not_specialize=["M"])
def row_wise_kernel(
    a_ptr, b_ptr, a_scale_ptr, b_scale_ptr, bias_ptr, residual_ptr, out_ptr,
    M, N, K, residual_stride,
    EVEN: tl.constexpr, FP8: tl.constexpr, PROMOTE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_TILES: tl.constexpr,
):  # fmt: skip
    tile_n, tile_m = place(tl.cdiv(N, BLOCK_N), tl.cdiv(M, BLOCK_M), GROUP_TILES)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n_inside, m_inside = n < N, m < M
    k = tl.arange(0, BLOCK_K)
    a_at = a_ptr + m.to(tl.int64)[:, None] * K + k[None, :]
    b_at = b_ptr + n.to(tl.int64)[:, None] * K + k[None, :]
    acc = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32 if FP8 else tl.int32)
    for block in range(tl.cdiv(K, BLOCK_K)):
        if EVEN:
            a = tl.load(a_at, mask=m_inside[:, None], other=0.0)
            b = tl.load(b_at, mask=n_inside[:, None], other=0.0)
        else:
            k_inside = (k < K - block * BLOCK_K)[None, :]
            a = tl.load(a_at, mask=m_inside[:, None] & k_inside, other=0.0)
            b = tl.load(b_at, mask=n_inside[:, None] & k_inside, other=0.0)
        if FP8:
            acc = tl.dot(b, a.T, acc, max_num_imprecise_acc=PROMOTE)
        else:
            acc = tl.dot(b, a.T, acc, out_dtype=tl.int32)
        a_at += BLOCK_K
        b_at += BLOCK_K
    y = acc.to(tl.float32) * tl.load(a_scale_ptr + m, mask=m_inside, other=0.0)[None, :]
    y = y * tl.load(b_scale_ptr + n, mask=n_inside, other=0.0)[:, None]
    if bias_ptr is not None:
        y = y + tl.load(bias_ptr + n, mask=n_inside, other=0.0).to(tl.float32)[:, None]
    inside = n_inside[:, None] & m_inside[None, :]
    if residual_ptr is not None:
        at = m.to(tl.int64)[None, :] * residual_stride + n[:, None]
        y = y + tl.load(residual_ptr + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + m.to(tl.int64)[None, :] * N + n[:, None], y.to(out_ptr.dtype.element_ty), mask=inside)


def quantize(x: torch.Tensor, kind: Quantization) -> tuple[torch.Tensor, torch.Tensor]:
    """Activations in 8 bits: codes [..., K], and scale [...] float32 that multiplies them.

    Args:
        x: [..., K], any float type.
        kind: int8 or fp8. The reference is ``rows.quantized_rows``.
    """
    codes = torch.empty(x.shape, dtype=CODES[kind], device=x.device)
    scale = torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)
    if x.numel():
        for launch in quantize_launches(_flat(x), codes.view(-1, x.shape[-1]), scale.view(-1), kind):
            launch.run()
    return codes, scale


def quantize_launches(
    x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, kind: Quantization
) -> tuple[Launch, ...]:
    """The one launch: x, codes [M, K] with contiguous rows, scale [M]."""
    rows, width = x.shape
    constants, warps = tile_of(width)
    constants |= {"LARGEST": LARGEST[kind], "FP8": kind == "fp8"}
    grid = (triton.cdiv(rows, constants["ROWS"]), 1, 1)
    args = (x, as_bytes(codes), scale, rows, width, x.stride(0))
    return (Launch(quantize_kernel, grid, args, constants, num_warps=warps, num_stages=1),)


def row_wise_linear(
    codes: torch.Tensor,
    scale: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    *,
    dtype: torch.dtype,
    batch_invariant: bool = True,
) -> torch.Tensor:
    """A linear layer over quantized rows.

    Args:
        codes: [..., K] int8 or float8_e4m3fn, contiguous.
        scale: [...] float32.
        weight: [N, K] of the same type.
        weight_scale: [N] float32.
        bias: [N] or None.
        residual: [..., N] or None.
        dtype: of the result.
        batch_invariant: a row's bits may not depend on how many rows there are.

    Returns:
        [..., N] in ``dtype``.

    Raises:
        KernelError: codes and weight are of different types or widths.
    """
    if codes.dtype is not weight.dtype or codes.dtype not in CODES.values():
        raise KernelError(f"row_wise_linear: codes are {codes.dtype}, the weight is {weight.dtype}")
    if codes.shape[-1] != weight.shape[1]:
        raise KernelError(
            f"row_wise_linear: the weight takes {weight.shape[1]} inputs, got {codes.shape[-1]}"
        )
    flat, scales = codes.reshape(-1, codes.shape[-1]), scale.reshape(-1)
    more = None if residual is None else _flat(residual)
    out = torch.empty(flat.shape[0], weight.shape[0], dtype=dtype, device=codes.device)
    if not batch_invariant and out.numel() and why_not_cublas(codes, weight, dtype) is None:
        out = torch._scaled_mm(
            flat, weight.T, scales[:, None], weight_scale[None, :], bias=bias, out_dtype=dtype
        )
        out = out if more is None else out + more
    elif out.numel():
        for launch in launches(flat, scales, weight, weight_scale, out, bias, more):
            launch.run()
    return out.view(*codes.shape[:-1], weight.shape[0])


def why_not_cublas(codes: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype) -> str | None:
    """Why ``torch._scaled_mm`` does not take these rows, or None when it does."""
    if not codes.is_cuda or not codes.dtype.is_floating_point:
        return "it multiplies float8 on CUDA"
    if dtype is not torch.bfloat16:
        return "with a scale a row it gives bfloat16"
    return "sizes are not divisible by 16" if any(size % 16 for size in weight.shape) else None


def launches(
    codes: torch.Tensor,
    scale: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    out: torch.Tensor,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    *,
    key: str = "",
) -> tuple[Launch, ...]:
    """The one launch: codes [M, K], weight [N, K], out [M, N] contiguous; residual with contiguous rows."""
    (rows, columns), width = codes.shape, weight.shape[0]
    fp8 = codes.dtype.is_floating_point
    tiles = tile("row_wise", key or device_key(codes.device), rows=rows)
    constants = {**tiles.constants, "FP8": fp8, "PROMOTE": PROMOTE}
    constants["EVEN"] = columns % constants["BLOCK_K"] == 0
    stride = 0 if residual is None else residual.stride(0)
    args = (codes, weight, scale, weight_scale, bias, residual, out, rows, width, columns, stride)
    count = triton.cdiv(width, constants["BLOCK_N"]) * triton.cdiv(rows, constants["BLOCK_M"])
    title = f"row_wise {'fp8' if fp8 else 'int8'} {width}x{columns} M={rows}"
    return (
        Launch(row_wise_kernel, (count, 1, 1), args, constants, tiles.num_warps, tiles.num_stages, title),
    )


def _flat(x: torch.Tensor) -> torch.Tensor:
    """[M, K] with contiguous rows; a copy only where a view cannot be."""
    x = x.reshape(-1, x.shape[-1])
    return x if x.stride(1) == 1 else x.contiguous()


def shipped(key: str) -> Iterator[Launch]:
    """A layer of a Llama of 8 billion parameters; float8 from the chips on that multiply it."""
    for kind in (torch.int8, torch.float8_e4m3fn):
        if kind.is_floating_point and key in ("sm_80", "sm_86"):
            continue
        weight = torch.empty(4096, 4096, dtype=kind, device="meta")
        weight_scale = torch.empty(4096, dtype=torch.float32, device="meta")
        for count in (16, 64, 8192):
            codes = torch.empty(count, 4096, dtype=kind, device="meta")
            scale = torch.empty(count, dtype=torch.float32, device="meta")
            out = torch.empty(count, 4096, dtype=torch.bfloat16, device="meta")
            yield from launches(codes, scale, weight, weight_scale, out, key=key)
    x = torch.empty(64, 4096, dtype=torch.bfloat16, device="meta")
    scale = torch.empty(64, dtype=torch.float32, device="meta")
    yield from quantize_launches(x, torch.empty(64, 4096, dtype=torch.int8, device="meta"), scale, "int8")


def expects(launch: Launch, key: str) -> tuple[str, ...]:
    """16-byte copies everywhere, wgmma on Hopper."""
    if launch.kernel is not row_wise_kernel:
        return ()
    copies = ("cp.async.cg.shared.global",)
    return (*copies, "wgmma.mma_async") if key == "sm_90" else copies
