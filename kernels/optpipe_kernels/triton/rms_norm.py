"""``rms_norm`` and ``add_rms_norm``, with or without rounding the result to 8 bits a token.

    x' = x / sqrt(mean(x²) + eps) · (w' + offset)      first norm of the branch, where a model has one (Gemma)
    s  = factor · x' + residual                        both rounded to x's type; the factor is Granite's
    y  = s / sqrt(mean(s²) + eps) · (w + offset)

Shapes: x, residual [..., K], any two leading dimensions strided (a norm of every head is one launch).
Bytes moved, of a 16-bit type: 4 an element; with the add 8; with codes 1 in the place of y's 2.
Source: Zhang and Sennrich 2019; equals the bodies ``optpipe.dialect.rms_norm`` and ``add_rms_norm``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from .launch import Launch
from .rows import CODES, LARGEST, Quantization, Rows, as_bytes, quantize_rows, rows_of, tile_of


@triton.jit
def normalized(x, weight_ptr, column, width, eps, UNIT_OFFSET: tl.constexpr):
    """The norm of rows x [ROWS, WIDTH] float32, zero past their end."""
    y = x * tl.rsqrt(tl.sum(x * x, axis=1) / width + eps)[:, None]
    if weight_ptr is not None:
        weight = tl.load(weight_ptr + column, mask=column < width, other=0.0).to(tl.float32)
        if UNIT_OFFSET:
            weight += 1.0
        y *= weight[None, :]
    return y


@triton.jit(do_not_specialize=["rows"])
def rms_norm_kernel(
    x_ptr, residual_ptr, branch_ptr, weight_ptr, out_ptr, total_ptr, codes_ptr, scale_ptr,
    rows, inner, width, eps, factor,
    x_outer_stride, x_inner_stride, residual_outer_stride, residual_inner_stride,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
    UNIT_OFFSET: tl.constexpr, QUANTIZE: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    inside = (row < rows)[:, None] & (column < width)[None, :]
    outer, head = (row // inner).to(tl.int64), (row % inner).to(tl.int64)
    at = (outer * x_outer_stride + head * x_inner_stride)[:, None] + column[None, :]
    value = tl.load(x_ptr + at, mask=inside, other=0.0)
    kind = value.dtype
    x = value.to(tl.float32)
    flat = row.to(tl.int64)[:, None] * width + column[None, :]
    if branch_ptr is not None:
        x = normalized(x, branch_ptr, column, width, eps, UNIT_OFFSET).to(kind).to(tl.float32)
    if residual_ptr is not None:
        at = (outer * residual_outer_stride + head * residual_inner_stride)[:, None] + column[None, :]
        x = x * factor + tl.load(residual_ptr + at, mask=inside, other=0.0).to(tl.float32)
        total = x.to(kind)
        tl.store(total_ptr + flat, total, mask=inside)
        x = total.to(tl.float32)
    rounded = normalized(x, weight_ptr, column, width, eps, UNIT_OFFSET).to(kind)
    if out_ptr is not None:
        tl.store(out_ptr + flat, rounded, mask=inside)
    if codes_ptr is not None:
        codes, scale = quantize_rows(rounded.to(tl.float32), LARGEST, QUANTIZE == "fp8")
        tl.store(codes_ptr + flat, codes, mask=inside)
        tl.store(scale_ptr + row, scale, mask=row < rows)


@dataclass(frozen=True, slots=True)
class Normed:
    """What a norm wrote.

    Attributes:
        out: [..., K] in x's type, or None where only codes were asked for.
        total: [..., K], x + residual; None without a residual.
        codes: [..., K] int8 or float8_e4m3fn, or None.
        scale: [...] float32, what codes are multiplied by.
    """

    out: torch.Tensor | None
    total: torch.Tensor | None = None
    codes: torch.Tensor | None = None
    scale: torch.Tensor | None = None


def results(x: torch.Tensor, *, add: bool, quantize: Quantization, write: bool) -> Normed:
    """Room for the results."""
    shape = x.shape

    def like() -> torch.Tensor:
        return torch.empty(shape, dtype=x.dtype, device=x.device)

    return Normed(
        out=like() if write else None,
        total=like() if add else None,
        codes=None if quantize == "none" else torch.empty(shape, dtype=CODES[quantize], device=x.device),
        scale=None if quantize == "none" else torch.empty(shape[:-1], dtype=torch.float32, device=x.device),
    )


def walks(x: torch.Tensor, residual: torch.Tensor | None) -> tuple[Rows, Rows | None]:
    """How to walk both operands in the same order."""
    here = rows_of(x)
    if residual is None:
        return here, None
    there = rows_of(residual.expand(x.shape))
    if there.inner != here.inner:  # one of them was copied to flat rows: so is the other
        here, there = rows_of(x.reshape(-1, here.width)), rows_of(residual.reshape(-1, here.width))
    return here, there


def launches(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor | None,
    into: Normed,
    *,
    eps: float,
    unit_offset: bool = False,
    quantize: Quantization = "none",
    branch: torch.Tensor | None = None,
    factor: float = 1.0,
) -> tuple[Launch, ...]:
    """The one launch of a norm.

    Args:
        x, residual: [..., K].
        weight: [K] or None.
        into: contiguous results; those that are None are not written.
        branch: [K], the weight of the norm of x before the sum; None for no such norm.
        factor: multiplies the branch before the sum.
    """
    here, there = walks(x, residual)
    constants, warps = tile_of(here.width)
    constants |= {"UNIT_OFFSET": unit_offset, "QUANTIZE": quantize, "LARGEST": LARGEST.get(quantize, 0.0)}
    args = (
        here.tensor,
        None if there is None else there.tensor,
        branch,
        weight,
        into.out,
        into.total,
        as_bytes(into.codes),
        into.scale,
        here.count,
        here.inner,
        here.width,
        eps,
        factor,
        here.outer_stride,
        here.inner_stride,
        0 if there is None else there.outer_stride,
        0 if there is None else there.inner_stride,
    )
    grid = (triton.cdiv(here.count, constants["ROWS"]), 1, 1)
    title = ("" if residual is None else "add_") + "rms_norm" + ("" if branch is None else " after one")
    return (Launch(rms_norm_kernel, grid, args, constants, num_warps=warps, num_stages=1, name=title),)


def norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    *,
    eps: float,
    unit_offset: bool = False,
    residual: torch.Tensor | None = None,
    branch: torch.Tensor | None = None,
    factor: float = 1.0,
    quantize: Quantization = "none",
    write: bool = True,
) -> Normed:
    """A norm with all that may be fused into it.

    Args:
        x: [..., K].
        weight: [K], or None for a norm without a scale.
        eps: added to the mean square.
        unit_offset: the scale is ``1 + weight``.
        residual: [..., K] that is added first.
        branch: [K], the weight of a norm of x before that, with the same eps and offset; None for none.
        factor: multiplies x before the sum.
        quantize: the 8-bit type of the codes to write, one scale a row.
        write: whether y itself is written.
    """
    into = results(x, add=residual is not None, quantize=quantize, write=write)
    if x.numel():
        how: dict[str, Any] = {"eps": eps, "unit_offset": unit_offset, "quantize": quantize}
        for launch in launches(x, residual, weight, into, **how, branch=branch, factor=factor):
            launch.run()
    return into


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor | None, *, eps: float, unit_offset: bool = False
) -> torch.Tensor:
    """The dialect's ``rms_norm`` [..., K]."""
    out = norm(x, weight, eps=eps, unit_offset=unit_offset).out
    assert out is not None
    return out


def add_rms_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor | None,
    *,
    eps: float,
    unit_offset: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The dialect's ``add_rms_norm``: the normed sum and the sum, both [..., K]."""
    found = norm(x, weight, eps=eps, unit_offset=unit_offset, residual=residual)
    assert found.out is not None
    assert found.total is not None
    return found.out, found.total


def shipped(key: str) -> Iterator[Launch]:
    """Norms of the models at hand: a Llama's layer, its 8-bit forms, the heads of Qwen3 and Gemma 3."""
    meta: dict[str, Any] = {"device": "meta", "dtype": torch.bfloat16}
    wide, weight = torch.empty(64, 4096, **meta), torch.empty(4096, **meta)
    for quantize in ("none", "int8", "fp8"):
        into = results(wide, add=True, quantize=quantize, write=quantize == "none")
        yield from launches(wide, wide, weight, into, eps=1e-5, quantize=quantize)
    yield from launches(wide, None, weight, results(wide, add=False, quantize="none", write=True), eps=1e-5)
    into = results(wide, add=True, quantize="none", write=True)
    yield from launches(wide, wide, weight, into, eps=1e-6, unit_offset=True, branch=weight)
    for heads, head in ((32, 128), (4, 256)):
        fused = torch.empty(64, (heads + 16) * head, **meta)[:, : heads * head].view(64, heads, head)
        into = results(fused, add=False, quantize="none", write=True)
        yield from launches(fused, None, torch.empty(head, **meta), into, eps=1e-6, unit_offset=head == 256)


def expects(launch: Launch, key: str) -> tuple[str, ...]:
    """16 bytes a load."""
    return ("ld.global.v4.b32",)
