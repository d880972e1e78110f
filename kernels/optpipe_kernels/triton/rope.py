"""``rope``: the first R channels of every head turned by its position.

    y = x · cos + rotate(x) · sin

    halves:       rotate(x)[d] = −x[d + R/2] for d < R/2, else x[d − R/2]
    interleaved:  rotate(x)[2i] = −x[2i + 1],  rotate(x)[2i + 1] = x[2i]

Shapes: x [T, H, D] with tokens and heads of any stride, cos and sin [T, R], R ≤ D; y [T, H, D] contiguous.
Channels from R on are copied. A program turns all pairs of some heads of one token and reads its angles once.
Bytes moved, of a 16-bit type: 4 an element and 8 · R a token (float32 angles).
Source: Su et al. 2021, equation 34; equals the body ``optpipe.dialect.rope``.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from .launch import Launch

TILE = 2048  # channels a program: 16 a thread of 4 warps


@triton.jit
def rotate_pair(first, second, cos_first, sin_first, cos_second, sin_second):
    """Both channels of pairs, in float32; each channel has an angle of its own."""
    return first * cos_first - second * sin_first, second * cos_second + first * sin_second


@triton.jit
def rope_kernel(
    x_ptr, cos_ptr, sin_ptr, out_ptr,
    heads, width, rotary, x_token_stride, x_head_stride, cos_stride, sin_stride,
    HEADS: tl.constexpr, PAIRS: tl.constexpr, REST: tl.constexpr, INTERLEAVED: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    x_row = x_ptr + token * x_token_stride + head[:, None] * x_head_stride
    out_row = out_ptr + (token * heads + head[:, None]) * width
    pair = tl.arange(0, PAIRS)
    there = (head < heads)[:, None]
    if INTERLEAVED:
        both = tl.arange(0, 2 * PAIRS)
        used = both < rotary
        value = tl.load(x_row + both[None, :], mask=there & used[None, :], other=0.0)
        cos = tl.load(cos_ptr + token * cos_stride + both, mask=used, other=0.0).to(tl.float32)
        sin = tl.load(sin_ptr + token * sin_stride + both, mask=used, other=0.0).to(tl.float32)
        first, second = tl.split(tl.reshape(value.to(tl.float32), (HEADS, PAIRS, 2)))
        cos_first, cos_second = tl.split(tl.reshape(cos, (PAIRS, 2)))
        sin_first, sin_second = tl.split(tl.reshape(sin, (PAIRS, 2)))
        first, second = rotate_pair(
            first, second, cos_first[None, :], sin_first[None, :], cos_second[None, :], sin_second[None, :]
        )
        y = tl.reshape(tl.join(first, second), (HEADS, 2 * PAIRS))
        tl.store(out_row + both[None, :], y.to(value.dtype), mask=there & used[None, :])
    else:
        half = rotary // 2
        used = pair < half
        inside = there & used[None, :]
        first = tl.load(x_row + pair[None, :], mask=inside, other=0.0)
        second = tl.load(x_row + half + pair[None, :], mask=inside, other=0.0)
        kind = first.dtype
        cos_row, sin_row = cos_ptr + token * cos_stride, sin_ptr + token * sin_stride
        cos_first = tl.load(cos_row + pair, mask=used, other=0.0).to(tl.float32)[None, :]
        sin_first = tl.load(sin_row + pair, mask=used, other=0.0).to(tl.float32)[None, :]
        cos_second = tl.load(cos_row + half + pair, mask=used, other=0.0).to(tl.float32)[None, :]
        sin_second = tl.load(sin_row + half + pair, mask=used, other=0.0).to(tl.float32)[None, :]
        low, high = rotate_pair(
            first.to(tl.float32), second.to(tl.float32), cos_first, sin_first, cos_second, sin_second
        )
        tl.store(out_row + pair[None, :], low.to(kind), mask=inside)
        tl.store(out_row + half + pair[None, :], high.to(kind), mask=inside)
    if REST > 0:
        channel = rotary + tl.arange(0, REST)
        inside = there & (channel < width)[None, :]
        value = tl.load(x_row + channel[None, :], mask=inside, other=0.0)
        tl.store(out_row + channel[None, :], value, mask=inside)


def launches(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, out: torch.Tensor, *, interleaved: bool = False
) -> tuple[Launch, ...]:
    """The one launch: x [T, H, D] and cos, sin [T, R] with contiguous channels, out [T, H, D] contiguous."""
    tokens, heads, width = x.shape
    rotary = cos.shape[-1]
    pairs = triton.next_power_of_2(max(rotary // 2, 1))
    at_once = max(1, min(triton.next_power_of_2(heads), TILE // triton.next_power_of_2(width)))
    constants = {
        "HEADS": at_once,
        "PAIRS": pairs,
        "REST": triton.next_power_of_2(width - rotary) if width > rotary else 0,
        "INTERLEAVED": interleaved,
    }
    args = (
        x, cos, sin, out, heads, width, rotary, x.stride(0), x.stride(1), cos.stride(0), sin.stride(0),
    )  # fmt: skip
    grid = (tokens, triton.cdiv(heads, at_once), 1)
    return (Launch(rope_kernel, grid, args, constants, num_stages=1),)


def rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, interleaved: bool = False) -> torch.Tensor:
    """The dialect's ``rope`` [T, H, D]."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    x, cos, sin = (it if it.stride(-1) == 1 else it.contiguous() for it in (x, cos, sin))
    if out.numel():
        for launch in launches(x, cos, sin, out, interleaved=interleaved):
            launch.run()
    return out


def shipped(key: str) -> Iterator[Launch]:
    """A Llama's queries inside their projection, Gemma's wide heads, GPT-J's and NeoX's partial turns."""
    for heads, width, rotary, interleaved in (
        (32, 128, 128, False), (4, 256, 256, False), (16, 256, 64, True), (64, 96, 24, False),
    ):  # fmt: skip
        fused = torch.empty(64, (heads + 16) * width, device="meta", dtype=torch.bfloat16)
        x = fused[:, : heads * width].view(64, heads, width)
        angles = torch.empty(64, rotary, device="meta")
        out = torch.empty(64, heads, width, device="meta", dtype=torch.bfloat16)
        yield from launches(x, angles, angles, out, interleaved=interleaved)


def expects(launch: Launch, key: str) -> tuple[str, ...]:
    """16 bytes a load where there are heads enough and halves begin at them."""
    held = launch.constants["HEADS"] * launch.constants["PAIRS"]
    return ("ld.global.v4.b32",) if held >= TILE // 2 and launch.constants["PAIRS"] >= 64 else ()
