"""``paged_decode``: attention of sequences with few new tokens, split over their keys.

    y[t, h] = Σ_n softmax_n(score(q[t, h], k[n])) · v[n]        as ``optpipe.dialect.paged_attention``

Programs take items (a sequence's span of keys, a KV head) from a list until it is empty, so that the grid
does not depend on how long the contexts are and a CUDA graph can replay it. A sequence of one span is
finished in place; the spans of others leave float32 sums, which a second kernel adds in order. The bytes
moved are the keys and values seen, once: 2 · context · H_kv · D · itemsize a sequence.

Layout of the sums: acc [items, H, most_tokens, Dv], total and peak [items, H, most_tokens], float32.

Source: Kwon et al. 2023 for the pages; Dao et al. 2023 (Flash-Decoding) for the split.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .attention_common import finish, first_key, merge, packed_rows, walk


@triton.jit(do_not_specialize=["rows", "sequences", "most_tokens", "table_stride"])
def paged_decode_kernel(
    q_ptr, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, out_ptr, acc_ptr, total_ptr, peak_ptr,
    query_start_ptr, context_ptr, table_ptr, item_start_ptr, item_sequence_ptr, sinks_ptr, alibi_ptr,
    rows, sequences, most_tokens, scale,
    q_row_stride, q_head_stride, table_stride,
    k_page_stride, k_slot_stride, k_head_stride, v_page_stride, v_slot_stride, v_head_stride,
    scale_page_stride, scale_slot_stride,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, PACK: tl.constexpr,
    PAGE: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    KIND: tl.constexpr, NATIVE: tl.constexpr, WINDOW: tl.constexpr, CHUNK: tl.constexpr,
    SOFTCAP: tl.constexpr, ALIBI: tl.constexpr, SINKS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    HEADS: tl.constexpr = KV_HEADS * GROUP
    HEAD_BLOCKS: tl.constexpr = (GROUP + PACK - 1) // PACK
    VALUE_BLOCKS: tl.constexpr = (DV + BLOCK_DV - 1) // BLOCK_DV
    AXIS: tl.constexpr = KV_HEADS * HEAD_BLOCKS * VALUE_BLOCKS  # programs an item; neighbours share its keys
    WIDTH: tl.constexpr = DV if DV < BLOCK_DV else BLOCK_DV
    d = tl.arange(0, BLOCK_D)
    column = tl.arange(0, BLOCK_DV)

    # Rows that belong to no sequence are zero.
    nothing = tl.zeros([BLOCK_DV], out_ptr.dtype.element_ty)
    used = tl.load(query_start_ptr + sequences) * (HEADS * VALUE_BLOCKS)
    for pad in tl.range(used + tl.program_id(0), rows * (HEADS * VALUE_BLOCKS), tl.num_programs(0)):
        tl.store(out_ptr + tl.cast(pad, tl.int64) * WIDTH + column, nothing, mask=column < WIDTH)

    count = tl.load(item_start_ptr + sequences) * AXIS
    for work in tl.range(tl.program_id(0), count, tl.num_programs(0)):
        item = work // AXIS
        kv_head = work // (HEAD_BLOCKS * VALUE_BLOCKS) % KV_HEADS
        head_block = work // VALUE_BLOCKS % HEAD_BLOCKS
        column0 = work % VALUE_BLOCKS * BLOCK_DV
        b = tl.load(item_sequence_ptr + item)
        context = tl.load(context_ptr + b)
        row0 = tl.load(query_start_ptr + b)
        tokens = tl.load(query_start_ptr + b + 1) - row0
        item0 = tl.load(item_start_ptr + b)
        items = tl.load(item_start_ptr + b + 1) - item0

        token, group_head, valid = packed_rows(0, tokens, head_block, tokens, BLOCK_M, PACK, GROUP)
        head = kv_head * GROUP + group_head
        q_at = q_ptr + (row0 + token).to(tl.int64)[:, None] * q_row_stride + head[:, None] * q_head_stride
        q = tl.load(q_at + d[None, :], mask=valid[:, None] & (d < D)[None, :], other=0.0)
        slope = tl.zeros([BLOCK_M], tl.float32)
        if ALIBI:
            slope = tl.load(alibi_ptr + head, mask=valid, other=0.0).to(tl.float32)

        oldest = first_key(context - tokens, WINDOW, CHUNK)
        span = oldest // SPAN + item - item0
        acc, total, peak = walk(
            tl.zeros([BLOCK_M, BLOCK_DV], tl.float32),
            tl.zeros([BLOCK_M], tl.float32),
            tl.full([BLOCK_M], float("-inf"), tl.float32),
            q, context - tokens + token, slope,
            tl.maximum(span * SPAN, oldest // BLOCK_N * BLOCK_N), tl.minimum((span + 1) * SPAN, context),
            context,
            table_ptr + b.to(tl.int64) * table_stride,
            k_ptr + kv_head * k_head_stride, v_ptr + kv_head * v_head_stride + column0,
            k_scale_ptr, v_scale_ptr, kv_head, scale,
            k_page_stride, k_slot_stride, v_page_stride, v_slot_stride, scale_page_stride, scale_slot_stride,
            PAGE, BLOCK_N, D, WIDTH, BLOCK_D, BLOCK_DV, KIND, NATIVE, WINDOW, CHUNK, SOFTCAP, ALIBI, True,
        )  # fmt: skip

        token, group_head, valid = packed_rows(0, tokens, head_block, context, BLOCK_M, PACK, GROUP)
        head = kv_head * GROUP + group_head
        dv = column0 + column
        wide = valid[:, None] & (dv < DV)[None, :]
        if items == 1:
            sink = tl.zeros([BLOCK_M], tl.float32)
            if SINKS:
                sink = tl.load(sinks_ptr + head, mask=valid, other=0.0).to(tl.float32)
            y = finish(acc, total, peak, sink, SINKS)
            out_at = ((row0 + token).to(tl.int64) * HEADS + head) * DV
            tl.store(out_ptr + out_at[:, None] + dv[None, :], y.to(out_ptr.dtype.element_ty), mask=wide)
        else:
            sum_at = ((item * HEADS + head) * most_tokens + token).to(tl.int64)
            tl.store(acc_ptr + sum_at[:, None] * DV + dv[None, :], acc, mask=wide)
            tl.store(total_ptr + sum_at, total, mask=valid)
            tl.store(peak_ptr + sum_at, peak, mask=valid)


@triton.jit(do_not_specialize=["most_tokens"])
def paged_reduce_kernel(
    acc_ptr, total_ptr, peak_ptr, out_ptr, query_start_ptr, item_start_ptr, sinks_ptr, most_tokens,
    HEADS: tl.constexpr, DV: tl.constexpr, BLOCK_DV: tl.constexpr,
    SINKS: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """One row: sequence program_id(0), head program_id(1), token program_id(2)."""
    b = tl.program_id(0)
    head = tl.program_id(1)
    token = tl.program_id(2)
    begin = tl.load(item_start_ptr + b)
    end = tl.load(item_start_ptr + b + 1)
    row = tl.load(query_start_ptr + b) + token
    if (end - begin > 1) & (row < tl.load(query_start_ptr + b + 1)):
        dv = tl.arange(0, BLOCK_DV)
        acc = tl.zeros([1, BLOCK_DV], tl.float32)
        total = tl.zeros([1], tl.float32)
        peak = tl.full([1], float("-inf"), tl.float32)
        one = tl.arange(0, 1)
        for item in tl.range(begin, end, loop_unroll_factor=UNROLL):
            at = ((item * HEADS + head) * most_tokens + token).to(tl.int64)
            acc, total, peak = merge(
                acc, total, peak,
                tl.load(acc_ptr + at * DV + dv[None, :], mask=(dv < DV)[None, :], other=0.0),
                tl.load(total_ptr + at + one), tl.load(peak_ptr + at + one),
            )  # fmt: skip
        sink = tl.zeros([1], tl.float32)
        if SINKS:
            sink = tl.load(sinks_ptr + head + one).to(tl.float32)
        y = finish(acc, total, peak, sink, SINKS)
        out_at = (row.to(tl.int64) * HEADS + head) * DV
        tl.store(out_ptr + out_at + dv[None, :], y.to(out_ptr.dtype.element_ty), mask=(dv < DV)[None, :])
