"""What the decode and the prefill kernel share: rows, scores, the walk over key tiles, merging, the end.

A program holds BLOCK_M rows of one KV head: row r is token r // PACK of its sequence's new tokens and head
r % PACK of the KV head's group, so that one read of the keys serves all of them. Keys are walked in tiles of
BLOCK_N that begin at multiples of BLOCK_N, and spans of SPAN keys that begin at multiples of SPAN are summed
apart, then added in order. What a row adds to what therefore depends on its position alone; tiles that
a row does not see change nothing in it.

    x = softcap(scale · q·k) + slope · (key − query), in units of log 2
    peak ← max(peak, ⌈max x⌉)       an integer, so that every rescaling is by a power of two, and exact
    weight = 2^(x − peak);  total ← total · 2^(old − new) + Σ weight;  acc ← acc · 2^(old − new) + weight · V

Source: Milakov and Gimelshein 2018 for the running sum; Dao 2023 (FlashAttention-2) for the walk.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def packed_rows(
    first_token, tokens, head_block, sure,
    BLOCK_M: tl.constexpr, PACK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """A program's rows: token of the sequence, head of the group, and whether the row is one.

    ``sure`` is a number that is never negative, which the compiler cannot know: where two calls name two of
    them, the second computes its rows anew, and none are kept in registers while keys are walked.
    """
    row = tl.arange(0, BLOCK_M) + tl.where(sure < 0, 1, 0)
    token = first_token + row // PACK
    head = head_block * PACK + row % PACK
    return token, head, (row < BLOCK_M // PACK * PACK) & (token < tokens) & (head < GROUP)


@triton.jit
def first_key(position, WINDOW: tl.constexpr, CHUNK: tl.constexpr):
    """The oldest key that a query at ``position`` sees."""
    oldest = position * 0
    if WINDOW is not None:
        oldest = tl.maximum(oldest, position - WINDOW + 1)
    if CHUNK is not None:
        oldest = tl.maximum(oldest, position // CHUNK * CHUNK)
    return oldest


@triton.jit
def widen(codes, like, KIND: tl.constexpr, NATIVE: tl.constexpr):
    """Cached numbers in the queries' dtype; float8 comes 256 times too small where the chip does not know it.

    KIND: 0 as they are, 1 int8, 2 the bytes of float8 e4m3.
    """
    if KIND == 2:
        if NATIVE:
            wide = codes.to(tl.float8e4nv, bitcast=True).to(like)
        else:
            bits = codes.to(tl.uint16)
            wide = (((bits & 128) << 8) | ((bits & 127) << 7)).to(tl.float16, bitcast=True).to(like)
    else:
        wide = codes.to(like)
    return wide


@triton.jit
def power_of_two(n):
    """2^n of an integer n ≤ 0 held as float32, exactly; 0 below −126."""
    return ((tl.maximum(n, -127.0).to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def score(
    qk, key_at, query_at, slope, k_scale, scale, context,
    WINDOW: tl.constexpr, CHUNK: tl.constexpr, SOFTCAP: tl.constexpr,
    ALIBI: tl.constexpr, SCALED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Scores [BLOCK_M, BLOCK_N] in units of log 2, −∞ where a row does not see a key."""
    if SCALED:
        qk = qk * k_scale[None, :]
    if SOFTCAP is not None:
        grown = tl.exp2(qk * (scale * (2.0 * LOG2E / SOFTCAP)))
        x = SOFTCAP * LOG2E * (1.0 - 2.0 / (grown + 1.0))  # softcap · tanh(scale · qk / softcap)
    else:
        x = qk * (scale * LOG2E)
    if ALIBI:
        apart = key_at.to(tl.float32)[None, :] - query_at.to(tl.float32)[:, None]  # exact below 2^24
        x += (slope * LOG2E)[:, None] * apart
    if MASKED:
        seen = (key_at[None, :] <= query_at[:, None]) & (key_at < context)[None, :]
        if WINDOW is not None or CHUNK is not None:
            seen = seen & (key_at[None, :] >= first_key(query_at, WINDOW, CHUNK)[:, None])
        x = tl.where(seen, x, float("-inf"))
    return x


@triton.jit
def walk(
    acc, total, peak, q, query_at, slope, begin, end, context,
    table_ptr, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, kv_head, scale,
    k_page_stride, k_slot_stride, v_page_stride, v_slot_stride, scale_page_stride, scale_slot_stride,
    PAGE: tl.constexpr, BLOCK_N: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, KIND: tl.constexpr, NATIVE: tl.constexpr,
    WINDOW: tl.constexpr, CHUNK: tl.constexpr, SOFTCAP: tl.constexpr,
    ALIBI: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Add the keys from ``begin`` to ``end`` to a running sum; cache pointers are those of the KV head.

    Args:
        acc: [BLOCK_M, BLOCK_DV] float32.
        total: [BLOCK_M] float32.
        peak: [BLOCK_M] float32, integers.
        begin: a multiple of BLOCK_N, or of SPAN.
    """
    d = tl.arange(0, BLOCK_D)
    dv = tl.arange(0, BLOCK_DV)
    for start in tl.range(begin, end, BLOCK_N):
        key_at = start + tl.arange(0, BLOCK_N)
        live = tl.full([BLOCK_N], True, tl.int1)
        if MASKED:
            live = key_at < context
        page = tl.load(table_ptr + key_at // PAGE, mask=live, other=0).to(tl.int64)
        slot = key_at % PAGE
        k_at = k_ptr + page[:, None] * k_page_stride + slot[:, None] * k_slot_stride + d[None, :]
        k = tl.load(k_at, mask=live[:, None] & (d < D)[None, :], other=0)
        qk = tl.dot(q, tl.trans(widen(k, q.dtype, KIND, NATIVE)), input_precision="ieee")
        k_scale = tl.zeros([1], tl.float32)
        if KIND > 0:
            scale_at = page * scale_page_stride + slot * scale_slot_stride + kv_head
            k_scale = tl.load(k_scale_ptr + scale_at, mask=live, other=0.0)
            if KIND == 2 and not NATIVE:
                k_scale *= 256.0
        x = score(
            qk, key_at, query_at, slope, k_scale, scale, context,
            WINDOW, CHUNK, SOFTCAP, ALIBI, KIND > 0, MASKED,
        )  # fmt: skip
        new = tl.maximum(peak, tl.ceil(tl.max(x, axis=1)))
        level = tl.where(new == float("-inf"), 0.0, new)  # a row that has seen nothing yet
        weight = tl.exp2(x - level[:, None])
        fade = power_of_two(peak - level)
        total = total * fade + tl.sum(weight, axis=1)
        acc = acc * fade[:, None]
        peak = new
        v_at = v_ptr + page[:, None] * v_page_stride + slot[:, None] * v_slot_stride + dv[None, :]
        v = tl.load(v_at, mask=live[:, None] & (dv < DV)[None, :], other=0)
        if KIND > 0:
            scale_at = page * scale_page_stride + slot * scale_slot_stride + kv_head
            v_scale = tl.load(v_scale_ptr + scale_at, mask=live, other=0.0)
            if KIND == 2 and not NATIVE:
                v_scale *= 256.0
        wide = widen(v, q.dtype, KIND, NATIVE)
        if KIND > 0:
            if q.dtype == tl.float16:  # which has no room below the scales for the weights of small scores
                wide = (wide.to(tl.float32) * v_scale[:, None]).to(tl.float16)
            else:
                weight = weight * v_scale[None, :]
        acc = tl.dot(weight.to(q.dtype), wide, acc, input_precision="ieee")
    return acc, total, peak


@triton.jit
def merge(acc, total, peak, more_acc, more_total, more_peak):
    """Two sums over different keys as one; both scales are powers of two."""
    new = tl.maximum(peak, more_peak)
    level = tl.where(new == float("-inf"), 0.0, new)
    fade = power_of_two(peak - level)
    more_fade = power_of_two(more_peak - level)
    acc = acc * fade[:, None] + more_acc * more_fade[:, None]
    return acc, total * fade + more_total * more_fade, new


@triton.jit
def finish(acc, total, peak, sink, SINKS: tl.constexpr):
    """The rows' results from their sums; a sink [BLOCK_M] is one more score, with no value."""
    if SINKS:
        sink = sink * LOG2E
        new = tl.maximum(peak, tl.ceil(sink))
        fade = power_of_two(peak - new)
        acc = acc * fade[:, None]
        total = total * fade + tl.exp2(sink - new)
    return acc / total[:, None]
