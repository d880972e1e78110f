"""``paged_prefill``: attention of prompts and chunks, a block of queries a program.

    y[t, h] = Σ_n softmax_n(score(q[t, h], k[n])) · v[n]        as ``optpipe.dialect.paged_attention``

A program holds BLOCK_M // PACK tokens of a sequence and the PACK heads of a KV head, and walks the keys that
any of them sees: tiles before the window or past the diagonal are skipped, tiles that every row sees
whole need no mask. With SPANNED the sums of spans are kept apart and added in order, as the split
decode does, so that a token has the same bits in a chunk as when it is decoded.

4 · D · (keys seen) floating-point operations a row; keys and values come from L2.

Source: Dao 2023 (FlashAttention-2) for the order of the loops; Kwon et al. 2023 for the pages.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .attention_common import finish, first_key, merge, packed_rows, walk


@triton.jit
def walk_both(
    acc, total, peak, q, query_at, slope, begin, middle, end, context,
    table_ptr, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, kv_head, scale,
    k_page_stride, k_slot_stride, v_page_stride, v_slot_stride, scale_page_stride, scale_slot_stride,
    PAGE: tl.constexpr, BLOCK_N: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, KIND: tl.constexpr, NATIVE: tl.constexpr,
    WINDOW: tl.constexpr, CHUNK: tl.constexpr, SOFTCAP: tl.constexpr, ALIBI: tl.constexpr,
):  # fmt: skip
    """Keys to ``middle`` without a mask, where no window or chunk may need one, then to ``end`` with it."""
    if WINDOW is None and CHUNK is None:
        acc, total, peak = walk(
            acc, total, peak, q, query_at, slope, begin, middle, context,
            table_ptr, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, kv_head, scale,
            k_page_stride, k_slot_stride, v_page_stride, v_slot_stride, scale_page_stride, scale_slot_stride,
            PAGE, BLOCK_N, D, DV, BLOCK_D, BLOCK_DV, KIND, NATIVE, WINDOW, CHUNK, SOFTCAP, ALIBI, False,
        )  # fmt: skip
        begin = middle
    return walk(
        acc, total, peak, q, query_at, slope, begin, end, context,
        table_ptr, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, kv_head, scale,
        k_page_stride, k_slot_stride, v_page_stride, v_slot_stride, scale_page_stride, scale_slot_stride,
        PAGE, BLOCK_N, D, DV, BLOCK_D, BLOCK_DV, KIND, NATIVE, WINDOW, CHUNK, SOFTCAP, ALIBI, True,
    )  # fmt: skip


@triton.jit(do_not_specialize=["table_stride"])
def paged_prefill_kernel(
    q_ptr, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, out_ptr,
    query_start_ptr, context_ptr, table_ptr, block_sequence_ptr, block_token_ptr, sinks_ptr, alibi_ptr,
    scale, q_row_stride, q_head_stride, table_stride,
    k_page_stride, k_slot_stride, k_head_stride, v_page_stride, v_slot_stride, v_head_stride,
    scale_page_stride, scale_slot_stride,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, PACK: tl.constexpr,
    PAGE: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    KIND: tl.constexpr, NATIVE: tl.constexpr, WINDOW: tl.constexpr, CHUNK: tl.constexpr,
    SOFTCAP: tl.constexpr, ALIBI: tl.constexpr, SINKS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SPAN: tl.constexpr, SPANNED: tl.constexpr,
):  # fmt: skip
    HEADS: tl.constexpr = KV_HEADS * GROUP
    HEAD_BLOCKS: tl.constexpr = (GROUP + PACK - 1) // PACK
    block = tl.program_id(1)
    kv_head = tl.program_id(0) // HEAD_BLOCKS
    b = tl.load(block_sequence_ptr + block)
    first_token = tl.load(block_token_ptr + block)
    context = tl.load(context_ptr + b)
    row0 = tl.load(query_start_ptr + b)
    tokens = tl.load(query_start_ptr + b + 1) - row0

    d = tl.arange(0, BLOCK_D)
    dv = tl.program_id(2) * BLOCK_DV + tl.arange(0, BLOCK_DV)
    head_block = tl.program_id(0) % HEAD_BLOCKS
    token, group_head, valid = packed_rows(first_token, tokens, head_block, tokens, BLOCK_M, PACK, GROUP)
    head = kv_head * GROUP + group_head
    q_at = q_ptr + (row0 + token).to(tl.int64)[:, None] * q_row_stride + head[:, None] * q_head_stride
    q = tl.load(q_at + d[None, :], mask=valid[:, None] & (d < D)[None, :], other=0.0)
    slope = tl.zeros([BLOCK_M], tl.float32)
    if ALIBI:
        slope = tl.load(alibi_ptr + head, mask=valid, other=0.0).to(tl.float32)

    position = context - tokens + first_token  # of the block's first token
    oldest = first_key(position, WINDOW, CHUNK)
    newest = tl.minimum(position + BLOCK_M // PACK, context)
    whole = (position + 1) // BLOCK_N * BLOCK_N  # every row sees the tiles below this whole

    query_at = context - tokens + token
    tables = table_ptr + b.to(tl.int64) * table_stride
    k_ptr += kv_head * k_head_stride
    v_ptr += kv_head * v_head_stride + tl.program_id(2) * BLOCK_DV
    WIDTH: tl.constexpr = DV if DV < BLOCK_DV else BLOCK_DV
    acc = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    if SPANNED:
        for span in tl.range(oldest // SPAN, (newest - 1) // SPAN + 1):
            begin = tl.maximum(span * SPAN, oldest // BLOCK_N * BLOCK_N)
            end = tl.minimum((span + 1) * SPAN, newest)
            part_acc, part_total, part_peak = walk_both(
                tl.zeros([BLOCK_M, BLOCK_DV], tl.float32), tl.zeros([BLOCK_M], tl.float32),
                tl.full([BLOCK_M], float("-inf"), tl.float32),
                q, query_at, slope, begin, tl.minimum(tl.maximum(whole, begin), end), end, context,
                tables, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, kv_head, scale,
                k_page_stride, k_slot_stride, v_page_stride, v_slot_stride,
                scale_page_stride, scale_slot_stride,
                PAGE, BLOCK_N, D, WIDTH, BLOCK_D, BLOCK_DV, KIND, NATIVE, WINDOW, CHUNK, SOFTCAP, ALIBI,
            )  # fmt: skip
            acc, total, peak = merge(acc, total, peak, part_acc, part_total, part_peak)
    else:
        begin = oldest // BLOCK_N * BLOCK_N
        acc, total, peak = walk_both(
            acc, total, peak, q, query_at, slope, begin, tl.maximum(whole, begin), newest, context,
            tables, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, kv_head, scale,
            k_page_stride, k_slot_stride, v_page_stride, v_slot_stride, scale_page_stride, scale_slot_stride,
            PAGE, BLOCK_N, D, WIDTH, BLOCK_D, BLOCK_DV, KIND, NATIVE, WINDOW, CHUNK, SOFTCAP, ALIBI,
        )  # fmt: skip

    token, group_head, valid = packed_rows(first_token, tokens, head_block, context, BLOCK_M, PACK, GROUP)
    head = kv_head * GROUP + group_head
    sink = tl.zeros([BLOCK_M], tl.float32)
    if SINKS:
        sink = tl.load(sinks_ptr + head, mask=valid, other=0.0).to(tl.float32)
    y = finish(acc, total, peak, sink, SINKS)
    out_at = ((row0 + token).to(tl.int64) * HEADS + head) * DV
    wide = valid[:, None] & (dv < DV)[None, :]
    tl.store(out_ptr + out_at[:, None] + dv[None, :], y.to(out_ptr.dtype.element_ty), mask=wide)
