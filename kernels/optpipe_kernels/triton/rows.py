"""Rows of a tensor [..., K] as norms see them, the tile that holds them, and rounding a row to 8 bits.

A tensor of two outer dimensions (tokens and heads, say) is walked where it lies, so that a view into a fused
projection costs no copy. The tile depends on K alone: a row has the same bits whatever stands beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import triton
import triton.language as tl

from optpipe.errors import KernelError

Quantization = Literal["none", "int8", "fp8"]
CODES: dict[Quantization, torch.dtype] = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
LARGEST: dict[Quantization, float] = {"int8": 127.0, "fp8": 448.0}

MAX_WIDTH = 65536  # a row is held in registers by one program
TILE = 1024  # elements a program at least: 8 a thread of 4 warps, which are 16 bytes of a 16-bit type
# widest row → warps: 8 to 32 elements a thread
WARPS = ((1024, 4), (4096, 8), (16384, 16), (MAX_WIDTH, 32))


@dataclass(frozen=True, slots=True)
class Rows:
    """Where the rows of [outer, inner, width] are, in elements; the last dimension is contiguous."""

    tensor: torch.Tensor
    outer: int
    inner: int
    width: int
    outer_stride: int
    inner_stride: int

    @property
    def count(self) -> int:
        """How many rows there are."""
        return self.outer * self.inner


def rows_of(x: torch.Tensor) -> Rows:
    """The rows of x [..., K]; it is copied only if its leading dimensions make no two-level walk."""
    width = x.shape[-1]
    if width > MAX_WIDTH:
        raise KernelError(f"a row of {width} values is wider than the kernel takes, {MAX_WIDTH}")
    if (x.stride(-1) != 1 and width > 1) or x.dim() > 3:
        x = x.contiguous().view(-1, width)
    if x.dim() == 1:
        return Rows(x, 1, 1, width, width, width)
    if x.dim() == 2:
        return Rows(x, x.shape[0], 1, width, x.stride(0), width)
    return Rows(x, x.shape[0], x.shape[1], width, x.stride(0), x.stride(1))


def tile_of(width: int) -> tuple[dict[str, Any], int]:
    """The constants of a tile that holds whole rows of ``width``, and its warps."""
    block = triton.next_power_of_2(width)
    warps = next(warps for widest, warps in WARPS if width <= widest)
    return {"ROWS": max(1, min(TILE // block, 16)), "WIDTH": block}, warps


@triton.jit
def round_even(x):
    """The nearest integer of |x| < 2^22, halves to even: float32 has no room for a fraction at 1.5 · 2^23."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def e4m3_bits(x):
    """The byte of |x| ≤ 448 as float8 e4m3, halves to even: sign, 4 bits of exponent (bias 7), 3 of fraction.

    By integers, so that chips without the type's instructions and the interpreter round alike.
    """
    size = tl.abs(x)
    bits = size.to(tl.int32, bitcast=True)
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - (120 << 3)
    small = round_even(size * 512.0).to(tl.int32)  # below 2^-6 steps are 2^-9 wide
    code = tl.where(size < 0.015625, small, normal)
    return (code | tl.where(x.to(tl.int32, bitcast=True) < 0, 128, 0)).to(tl.uint8)


@triton.jit
def largest_of(y):
    """The largest magnitude of each row of y float32; NaN for a row with one, which a GPU's maximum drops."""
    broken = tl.sum((y != y).to(tl.int32), axis=1) > 0
    return tl.where(broken, float("nan"), tl.max(tl.abs(y), axis=1))


@triton.jit
def quantize_rows(y, LARGEST: tl.constexpr, FP8: tl.constexpr):
    """Codes and scale of each row of y [ROWS, WIDTH] float32, zero past its end.

    scale = max |y| / LARGEST, or 1 for a row of zeros; code = y / scale, rounded to nearest even. The scale
    of a row with NaN is NaN, and so is what comes of its codes.
    """
    peak = largest_of(y)
    scale = tl.where(peak == 0, 1.0, peak * (1.0 / LARGEST))
    codes = y / scale[:, None]
    codes = tl.minimum(tl.maximum(codes, -LARGEST), LARGEST)
    stored = e4m3_bits(codes) if FP8 else round_even(codes).to(tl.int8)
    return stored, scale


def as_bytes(codes: torch.Tensor | None) -> torch.Tensor | None:
    """Codes as kernels write them: float8 as its bytes."""
    return codes if codes is None or codes.dtype == torch.int8 else codes.view(torch.uint8)


def quantized_rows(y: torch.Tensor, kind: Quantization) -> tuple[torch.Tensor, torch.Tensor]:
    """The reference of ``quantize_rows``: codes [..., K] and scale [...] float32 of y [..., K]."""
    wide = y.float()
    peak = wide.abs().amax(-1)
    scale = torch.where(peak == 0, 1.0, peak * (1.0 / LARGEST[kind]))
    codes = (wide / scale.unsqueeze(-1)).clamp(-LARGEST[kind], LARGEST[kind])
    return (codes.round() if kind == "int8" else codes).to(CODES[kind]), scale
