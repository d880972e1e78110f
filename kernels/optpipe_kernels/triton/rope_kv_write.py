"""``rope_kv_write``: queries turned, keys turned into their cache slots, values into theirs, in one launch.

    q' = rope(q), k' = rope(k), k_cache[slot] = k', v_cache[slot] = v      as the dialect's rope and kv_write

Slot s of a cache [P, block, H_kv, D] is row s % block of block s // block; a negative slot is skipped. An
8-bit cache also takes a scale for each token's head, [P, block, H_kv] float32:

    scale = max |x| / 127 (int8) or 448 (float8 e4m3), 1 for zeros;  code = x / scale, halves to even

``kv_write`` is the same kernel without queries and angles. Bytes moved, of a 16-bit type: 4 an element of
q, k and v (3 into an 8-bit cache), and 8 · R a token for the angles.

Source: Su et al. 2021, equation 34; Kwon et al. 2023 for the slots.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import torch
import triton
import triton.language as tl

from .kv_cache import KINDS, LARGEST, Cache, encode, larger, scale_of
from .launch import Launch
from .rope import rotate_pair

TILE: Final = 2048  # channels a program: 8 of each half a thread of 4 warps, 16 bytes of a 16-bit type


@triton.jit
def turned_pairs(
    row, cos_ptr, sin_ptr, there,
    ROTARY: tl.constexpr, PAIRS: tl.constexpr, INTERLEAVED: tl.constexpr,
):  # fmt: skip
    """Both channels of every pair of the heads at ``row`` [HEADS, 1], turned and rounded to their dtype."""
    pair = tl.arange(0, PAIRS)
    used = pair < ROTARY // 2
    if INTERLEAVED:
        both = tl.arange(0, 2 * PAIRS)
        value = tl.load(row + both[None, :], mask=there & (both < ROTARY)[None, :], other=0.0)
        cos = tl.load(cos_ptr + both, mask=both < ROTARY, other=0.0).to(tl.float32)
        sin = tl.load(sin_ptr + both, mask=both < ROTARY, other=0.0).to(tl.float32)
        first, second = tl.split(tl.reshape(value, (value.shape[0], PAIRS, 2)))
        cos_first, cos_second = tl.split(tl.reshape(cos, (PAIRS, 2)))
        sin_first, sin_second = tl.split(tl.reshape(sin, (PAIRS, 2)))
    else:
        half = ROTARY // 2
        first = tl.load(row + pair[None, :], mask=there & used[None, :], other=0.0)
        second = tl.load(row + half + pair[None, :], mask=there & used[None, :], other=0.0)
        cos_first = tl.load(cos_ptr + pair, mask=used, other=0.0).to(tl.float32)
        sin_first = tl.load(sin_ptr + pair, mask=used, other=0.0).to(tl.float32)
        cos_second = tl.load(cos_ptr + half + pair, mask=used, other=0.0).to(tl.float32)
        sin_second = tl.load(sin_ptr + half + pair, mask=used, other=0.0).to(tl.float32)
    low, high = rotate_pair(
        first.to(tl.float32), second.to(tl.float32),
        cos_first[None, :], sin_first[None, :], cos_second[None, :], sin_second[None, :],
    )  # fmt: skip
    return low.to(first.dtype), high.to(first.dtype)


@triton.jit
def put_pairs(
    row, first, second, there, ROTARY: tl.constexpr, PAIRS: tl.constexpr, INTERLEAVED: tl.constexpr
):
    """Store both channels of every pair at ``row`` [HEADS, 1]."""
    kind = row.dtype.element_ty
    if INTERLEAVED:
        both = tl.arange(0, 2 * PAIRS)
        value = tl.reshape(tl.join(first, second), (first.shape[0], 2 * PAIRS))
        tl.store(row + both[None, :], value.to(kind), mask=there & (both < ROTARY)[None, :])
    else:
        pair = tl.arange(0, PAIRS)
        inside = there & (pair < ROTARY // 2)[None, :]
        tl.store(row + pair[None, :], first.to(kind), mask=inside)
        tl.store(row + ROTARY // 2 + pair[None, :], second.to(kind), mask=inside)


@triton.jit
def write_heads(
    k_ptr, v_ptr, cos_ptr, sin_ptr, k_cache_ptr, v_cache_ptr, k_scale_ptr, v_scale_ptr,
    token, slot, block, k_row_stride, k_head_stride, v_row_stride, v_head_stride,
    k_page_stride, k_slot_stride, k_cache_head_stride, v_page_stride, v_slot_stride, v_cache_head_stride,
    scale_page_stride, scale_slot_stride,
    KV_HEADS: tl.constexpr, HEADS: tl.constexpr, PAGE: tl.constexpr,
    D: tl.constexpr, DV: tl.constexpr, BLOCK_DV: tl.constexpr,
    ROTARY: tl.constexpr, PAIRS: tl.constexpr, REST: tl.constexpr, INTERLEAVED: tl.constexpr,
    KIND: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    """One block of a token's KV heads into a slot; the angles are the token's."""
    rest = ROTARY + tl.arange(0, REST)
    page = slot // PAGE
    place = slot % PAGE
    kv_head = block * HEADS + tl.arange(0, HEADS)
    there = kv_head < KV_HEADS
    head = kv_head[:, None]
    scale_at = page * scale_page_stride + place * scale_slot_stride + kv_head

    row = k_ptr + token * k_row_stride + head * k_head_stride
    cache_row = k_cache_ptr + page * k_page_stride + place * k_slot_stride + head * k_cache_head_stride
    inside = there[:, None] & (rest < D)[None, :]
    tail = tl.load(row + rest[None, :], mask=inside, other=0.0)
    peak = larger(0.0, tail)
    if ROTARY > 0:
        first, second = turned_pairs(row, cos_ptr, sin_ptr, there[:, None], ROTARY, PAIRS, INTERLEAVED)
        peak = larger(larger(peak, first), second)
        scale = scale_of(peak, LARGEST)
        first = encode(first, scale, KIND, LARGEST)
        second = encode(second, scale, KIND, LARGEST)
        put_pairs(cache_row, first, second, there[:, None], ROTARY, PAIRS, INTERLEAVED)
    scale = scale_of(peak, LARGEST)
    if ROTARY < D:
        tail_codes = encode(tail, scale, KIND, LARGEST).to(k_cache_ptr.dtype.element_ty)
        tl.store(cache_row + rest[None, :], tail_codes, mask=inside)
    if KIND > 0:
        tl.store(k_scale_ptr + scale_at, scale, mask=there)

    dv = tl.arange(0, BLOCK_DV)
    inside = there[:, None] & (dv < DV)[None, :]
    row = v_ptr + token * v_row_stride + head * v_head_stride
    value = tl.load(row + dv[None, :], mask=inside, other=0.0)
    value_scale = scale_of(larger(0.0, value), LARGEST)
    value_codes = encode(value, value_scale, KIND, LARGEST).to(v_cache_ptr.dtype.element_ty)
    cache_row = v_cache_ptr + page * v_page_stride + place * v_slot_stride + head * v_cache_head_stride
    tl.store(cache_row + dv[None, :], value_codes, mask=inside)
    if KIND > 0:
        tl.store(v_scale_ptr + scale_at, value_scale, mask=there)


@triton.jit
def rope_kv_write_kernel(
    q_ptr, k_ptr, v_ptr, cos_ptr, sin_ptr, out_ptr,
    k_cache_ptr, v_cache_ptr, k_scale_ptr, v_scale_ptr, slots_ptr,
    q_row_stride, q_head_stride, k_row_stride, k_head_stride, v_row_stride, v_head_stride,
    cos_stride, sin_stride,
    k_page_stride, k_slot_stride, k_cache_head_stride, v_page_stride, v_slot_stride, v_cache_head_stride,
    scale_page_stride, scale_slot_stride,
    Q_HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEADS: tl.constexpr, PAGE: tl.constexpr,
    D: tl.constexpr, DV: tl.constexpr, BLOCK_DV: tl.constexpr,
    ROTARY: tl.constexpr, PAIRS: tl.constexpr, REST: tl.constexpr, INTERLEAVED: tl.constexpr,
    KIND: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    Q_BLOCKS: tl.constexpr = (Q_HEADS + HEADS - 1) // HEADS
    token = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    rest = ROTARY + tl.arange(0, REST)
    cos_row, sin_row = cos_ptr, sin_ptr
    if ROTARY > 0:
        cos_row = cos_ptr + token * cos_stride
        sin_row = sin_ptr + token * sin_stride
    if block < Q_BLOCKS:
        if Q_HEADS > 0:
            head = (block * HEADS + tl.arange(0, HEADS))[:, None]
            there = head < Q_HEADS
            row = q_ptr + token * q_row_stride + head * q_head_stride
            out_row = out_ptr + (token * Q_HEADS + head) * D
            first, second = turned_pairs(row, cos_row, sin_row, there, ROTARY, PAIRS, INTERLEAVED)
            put_pairs(out_row, first, second, there, ROTARY, PAIRS, INTERLEAVED)
            if ROTARY < D:
                inside = there & (rest < D)[None, :]
                tl.store(out_row + rest[None, :], tl.load(row + rest[None, :], mask=inside), mask=inside)
    else:
        slot = tl.load(slots_ptr + token).to(tl.int64)
        if slot >= 0:
            write_heads(
                k_ptr, v_ptr, cos_row, sin_row, k_cache_ptr, v_cache_ptr, k_scale_ptr, v_scale_ptr,
                token, slot, block - Q_BLOCKS, k_row_stride, k_head_stride, v_row_stride, v_head_stride,
                k_page_stride, k_slot_stride, k_cache_head_stride,
                v_page_stride, v_slot_stride, v_cache_head_stride, scale_page_stride, scale_slot_stride,
                KV_HEADS, HEADS, PAGE, D, DV, BLOCK_DV, ROTARY, PAIRS, REST, INTERLEAVED, KIND, LARGEST,
            )  # fmt: skip


def kv_write(
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slots: torch.Tensor,
    *,
    k_scales: torch.Tensor | None = None,
    v_scales: torch.Tensor | None = None,
) -> None:
    """The dialect's ``kv_write``, into 8-bit caches too; see ``Cache`` for shapes."""
    cache = Cache(k_cache, v_cache, slots, k_scales, v_scales)
    cache.check(k, v)
    launch(None, k, v, None, None, None, cache).run()


def rope_kv_write(
    q: torch.Tensor | None,
    k: torch.Tensor,
    v: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    cache: Cache,
    *,
    interleaved: bool = False,
) -> torch.Tensor | None:
    """Turn queries and keys by their positions, and write keys and values into their slots.

    Args:
        q: [T, H, D]; tokens and heads may lie in a wider tensor. None where another kernel turns them.
        k: [T, H_kv, D], likewise.
        v: [T, H_kv, Dv], likewise.
        cos, sin: [T, R] with R ≤ D.
        cache: changed in place.
        interleaved: pairs are neighbours, not halves.

    Returns:
        The turned queries, [T, H, D], contiguous; None without queries.

    Raises:
        KernelError: operands disagree.
    """
    cache.check(k, v)
    out = None if q is None else q.new_empty(q.shape)
    launch(q, k, v, cos, sin, out, cache, interleaved=interleaved).run()
    return out


def launch(
    q: torch.Tensor | None,
    k: torch.Tensor,
    v: torch.Tensor,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    out: torch.Tensor | None,
    cache: Cache,
    *,
    interleaved: bool = False,
) -> Launch:
    """The one launch; without ``q``, ``cos`` and ``sin`` it only writes."""
    tokens, kv_heads, width = k.shape
    heads = 0 if q is None else q.shape[1]
    rotary = 0 if cos is None else cos.shape[-1]
    most = triton.next_power_of_2(max(heads, kv_heads))
    at_once = max(1, min(most, TILE // triton.next_power_of_2(width)))
    constants = {
        "Q_HEADS": heads, "KV_HEADS": kv_heads, "HEADS": at_once, "PAGE": cache.keys.shape[1],
        "D": width, "DV": v.shape[2], "BLOCK_DV": triton.next_power_of_2(v.shape[2]),
        "ROTARY": rotary, "PAIRS": triton.next_power_of_2(max(rotary // 2, 1)),
        "REST": triton.next_power_of_2(max(width - rotary, 1)), "INTERLEAVED": interleaved,
        "KIND": cache.kind, "LARGEST": LARGEST[cache.kind],
    }  # fmt: skip
    caches = [cache.keys, cache.values]
    if cache.keys.dtype == torch.float8_e4m3fn:
        caches = [held.view(torch.uint8) for held in caches]
    args = (
        q, k, v, cos, sin, out, *caches, cache.k_scales, cache.v_scales, cache.slots,
        *_strides(q), *_strides(k), *_strides(v),
        0 if cos is None else cos.stride(0), 0 if sin is None else sin.stride(0),
        *cache.keys.stride()[:3], *cache.values.stride()[:3],
        *_strides(cache.k_scales),
    )  # fmt: skip
    blocks = triton.cdiv(heads, at_once) + triton.cdiv(kv_heads, at_once)
    name = "rope_kv_write" if rotary else "kv_write"
    title = f"{name} {heads}/{kv_heads}x{width} {str(cache.keys.dtype).removeprefix('torch.')}"
    return Launch(rope_kv_write_kernel, (tokens, blocks, 1), args, constants, num_stages=1, name=title)


def _strides(x: torch.Tensor | None) -> tuple[int, int]:
    return (0, 0) if x is None else (x.stride(0), x.stride(1))


def shipped(key: str) -> Iterator[Launch]:
    """Llama's layers over every kind of cache, SmolLM2's, Gemma's, GPT-J's partial turn; a plain write."""
    for heads, kv_heads, width, rotary, dtype, interleaved in (
        (32, 8, 128, 128, torch.bfloat16, False),
        (32, 8, 128, 128, torch.float8_e4m3fn, False),
        (32, 8, 128, 128, torch.int8, False),
        (9, 3, 64, 64, torch.float16, False),
        (8, 4, 256, 256, torch.bfloat16, False),
        (16, 16, 256, 64, torch.bfloat16, True),
        (0, 8, 128, 0, torch.bfloat16, False),
    ):
        wide = torch.float16 if dtype == torch.float16 else torch.bfloat16
        fused = torch.empty(64, heads + 2 * kv_heads, width, dtype=wide, device="meta")
        q, k, v = fused[:, :heads], fused[:, heads : heads + kv_heads], fused[:, heads + kv_heads :]
        held = torch.empty(1024, 16, kv_heads, width, dtype=dtype, device="meta")
        scales = torch.empty(1024, 16, kv_heads, device="meta") if dtype in KINDS else None
        cache = Cache(held, held, torch.empty(64, dtype=torch.int64, device="meta"), scales, scales)
        angles = torch.empty(64, rotary, device="meta") if rotary else None
        out = torch.empty(64, heads, width, dtype=wide, device="meta") if heads else None
        yield launch(q if heads else None, k, v, angles, angles, out, cache, interleaved=interleaved)


def expects(launch: Launch, key: str) -> tuple[str, ...]:
    """16 bytes a load."""
    return ("ld.global.v4.b32",)
