"""``layer_norm``, with or without an addition before it and rounding to 8 bits a token after it.

    s = x + residual + second (rounded to x's type)
    y = (s − mean(s)) / sqrt(var(s) + eps) · w + b

Shapes: x, residual [..., K], any two leading dimensions strided; second [..., K] contiguous, the other branch
of models whose attention and feed-forward layer run side by side (GPT-NeoX, GPT-J, Falcon, Cohere); w and b
[K], or [H, K] for one norm a head.
Bytes moved, of a 16-bit type: 4 an element; with the add 8; with codes 1 in the place of y's 2.
Source: Ba, Kiros and Hinton 2016; equals the body ``optpipe.dialect.layer_norm``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl

from .launch import Launch
from .rms_norm import Normed, results, walks
from .rows import LARGEST, Quantization, as_bytes, quantize_rows, tile_of


@triton.jit(do_not_specialize=["rows"])
def layer_norm_kernel(
    x_ptr, residual_ptr, second_ptr, weight_ptr, bias_ptr, out_ptr, total_ptr, codes_ptr, scale_ptr,
    rows, inner, width, eps,
    x_outer_stride, x_inner_stride, residual_outer_stride, residual_inner_stride,
    weight_stride, bias_stride,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
    QUANTIZE: tl.constexpr, LARGEST: tl.constexpr,
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
    if residual_ptr is not None:
        at = (outer * residual_outer_stride + head * residual_inner_stride)[:, None] + column[None, :]
        x += tl.load(residual_ptr + at, mask=inside, other=0.0).to(tl.float32)
        if second_ptr is not None:
            x += tl.load(second_ptr + flat, mask=inside, other=0.0).to(tl.float32)
        total = x.to(kind)
        tl.store(total_ptr + flat, total, mask=inside)
        x = total.to(tl.float32)
    mean = tl.sum(x, axis=1) / width
    x = tl.where(inside, x - mean[:, None], 0.0)
    y = x * tl.rsqrt(tl.sum(x * x, axis=1) / width + eps)[:, None]
    if weight_ptr is not None:
        at = (head * weight_stride)[:, None] + column[None, :]
        y *= tl.load(weight_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if bias_ptr is not None:
        at = (head * bias_stride)[:, None] + column[None, :]
        y += tl.load(bias_ptr + at, mask=inside, other=0.0).to(tl.float32)
    rounded = y.to(kind)
    if out_ptr is not None:
        tl.store(out_ptr + flat, rounded, mask=inside)
    if codes_ptr is not None:
        codes, scale = quantize_rows(rounded.to(tl.float32), LARGEST, QUANTIZE == "fp8")
        tl.store(codes_ptr + flat, codes, mask=inside)
        tl.store(scale_ptr + row, scale, mask=row < rows)


def launches(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    into: Normed,
    *,
    eps: float,
    quantize: Quantization = "none",
    second: torch.Tensor | None = None,
) -> tuple[Launch, ...]:
    """The one launch of a norm.

    Args:
        x, residual: [..., K].
        weight, bias: [K], [H, K] where x is [..., H, K], or None.
        into: contiguous results; those that are None are not written.
        second: [..., K] contiguous, added with the residual; None for none.
    """
    here, there = walks(x, residual)
    constants, warps = tile_of(here.width)
    constants |= {"QUANTIZE": quantize, "LARGEST": LARGEST.get(quantize, 0.0)}
    args = (
        here.tensor,
        None if there is None else there.tensor,
        second,
        weight,
        bias,
        into.out,
        into.total,
        as_bytes(into.codes),
        into.scale,
        here.count,
        here.inner,
        here.width,
        eps,
        here.outer_stride,
        here.inner_stride,
        0 if there is None else there.outer_stride,
        0 if there is None else there.inner_stride,
        0 if weight is None or weight.dim() == 1 else weight.stride(0),
        0 if bias is None or bias.dim() == 1 else bias.stride(0),
    )
    grid = (triton.cdiv(here.count, constants["ROWS"]), 1, 1)
    return (Launch(layer_norm_kernel, grid, args, constants, num_warps=warps, num_stages=1),)


def norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    *,
    eps: float,
    residual: torch.Tensor | None = None,
    second: torch.Tensor | None = None,
    quantize: Quantization = "none",
    write: bool = True,
) -> Normed:
    """A norm with all that may be fused into it.

    Args:
        x: [..., K].
        weight, bias: [K], [H, K] where x is [..., H, K], or None.
        eps: added to the variance.
        residual: [..., K] that is added first.
        second: [..., K] that is added with it.
        quantize: the 8-bit type of the codes to write, one scale a row.
        write: whether y itself is written.
    """
    per_head = [it for it in (weight, bias) if it is not None and it.dim() == 2]
    if per_head and x.dim() != 3:  # heads are the walk's inner dimension
        x = x.reshape(-1, *x.shape[-2:])
    into = results(x, add=residual is not None, quantize=quantize, write=write)
    assert second is None or residual is not None, "the second branch is added with the residual"
    if x.numel():
        also = None if second is None else second.contiguous()
        for launch in launches(x, residual, weight, bias, into, eps=eps, quantize=quantize, second=also):
            launch.run()
    return into


def layer_norm(
    x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, *, eps: float
) -> torch.Tensor:
    """The dialect's ``layer_norm`` [..., K]."""
    out = norm(x, weight, bias, eps=eps).out
    assert out is not None
    return out.view(x.shape)


def shipped(key: str) -> Iterator[Launch]:
    """Norms of GPT-NeoX and Cohere shapes, with an addition, without a bias, and one a head."""
    meta: dict[str, Any] = {"device": "meta", "dtype": torch.bfloat16}
    wide, weight = torch.empty(64, 6144, **meta), torch.empty(6144, **meta)
    into = results(wide, add=True, quantize="none", write=True)
    yield from launches(wide, wide, weight, weight, into, eps=1e-5)
    into = results(wide, add=False, quantize="int8", write=False)
    yield from launches(wide, None, weight, None, into, eps=1e-5, quantize="int8")
    heads = torch.empty(64, 64, 128, **meta)
    into = results(heads, add=False, quantize="none", write=True)
    yield from launches(heads, None, torch.empty(64, 128, **meta), None, into, eps=1e-5)


def expects(launch: Launch, key: str) -> tuple[str, ...]:
    """16 bytes a load."""
    return ("ld.global.v4.b32",)
