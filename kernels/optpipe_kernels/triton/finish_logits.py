"""Logits as they are told: float32, scaled and softly capped, in one pass over [R, V].

    y = cap · tanh(factor · x / cap)        y = factor · x without a cap

Bytes moved: 8 an element of the float32 that a head gives, where a division, a tanh and a product move 24.
Equals: those four operations in float32 (Gemma 2's cap; the factors of Cohere and Granite).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from .activations import tanh
from .launch import Launch

BLOCK = 2048  # logits a program: 16 a thread of 4 warps


@triton.jit
def finish_logits_kernel(
    x_ptr, out_ptr, size, stride, factor, cap, CAPPED: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    y = tl.load(x_ptr + row * stride + at, mask=at < size, other=0.0).to(tl.float32) * factor
    if CAPPED:
        y = cap * tanh(y / cap)
    tl.store(out_ptr + row * size + at, y, mask=at < size)


def launches(
    x: torch.Tensor, out: torch.Tensor, *, factor: float = 1.0, cap: float | None = None
) -> tuple[Launch, ...]:
    """The one launch: x [R, V] with contiguous rows, out [R, V] float32 contiguous."""
    rows, size = x.shape
    args = (x, out, size, x.stride(0), factor, cap or 0.0)
    constants = {"CAPPED": cap is not None, "BLOCK": BLOCK}
    grid = (rows, triton.cdiv(size, BLOCK), 1)
    return (Launch(finish_logits_kernel, grid, args, constants, num_stages=1),)


def finish_logits(x: torch.Tensor, *, factor: float = 1.0, cap: float | None = None) -> torch.Tensor:
    """Logits [R, V] float32 from what the head gave.

    Args:
        x: [R, V].
        factor: multiplies it.
        cap: bound of the tanh; None for none.
    """
    x = x if x.stride(1) == 1 else x.contiguous()
    out = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    if out.numel():
        for launch in launches(x, out, factor=factor, cap=cap):
            launch.run()
    return out


def shipped(key: str) -> Iterator[Launch]:
    """Gemma 2's vocabulary with its cap, a Llama's without."""
    for size, cap in ((256000, 30.0), (128256, None)):
        x = torch.empty(64, size, device="meta")
        yield from launches(x, torch.empty(64, size, device="meta"), factor=0.5, cap=cap)


def expects(launch: Launch, key: str) -> tuple[str, ...]:
    """16 bytes a load."""
    return ("ld.global.v4.b32",)
