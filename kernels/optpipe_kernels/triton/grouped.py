"""Products of every expert's tokens with its own matrix, in one launch, and what is added up afterwards.

    out[p] = act(W_gate[e] · row(p) + b_gate[e]) · (W_up[e] · row(p) + b_up[e])      e = expert of pair p
    out[p] = W[e] · row(p) + b[e]                                                      without a gate

    y[t]   = Σ_s weight[t, s] · out[t · S + s]          in the order of slots, float32, rounded once

A program has BLOCK_N rows of one expert's matrix and BLOCK_M places of the order (routing.py); one whose
block has no pairs ends at once. The weight is the left operand, as in ``quant_tile``: a token's row has the
same bits whatever block it is in and however many there are.
Source: the sorted order is that of Gale et al. 2022, "MegaBlocks".
"""

from __future__ import annotations

import triton
import triton.language as tl

from .activations import activate
from .quant_codes import weights


@triton.jit
def pairs_of(order_ptr, limits_ptr, block, BLOCK_M: tl.constexpr):
    """The pairs of a block, and which of its places have one."""
    place = block * BLOCK_M + tl.arange(0, BLOCK_M)
    there = place < tl.load(limits_ptr + block)
    return tl.load(order_ptr + place, mask=there, other=0), there


@triton.jit
def gating(
    gate, up, limit, alpha, up_offset, KIND: tl.constexpr, HAS_LIMIT: tl.constexpr, SCALED: tl.constexpr
):
    """The dialect's ``Gating`` of both halves, in float32; SCALED is ``gate · sigmoid(alpha · gate)``."""
    if HAS_LIMIT:
        gate = tl.minimum(gate, limit)
        up = tl.minimum(tl.maximum(up, -limit), limit)
    act = gate * tl.sigmoid(alpha * gate) if SCALED else activate(gate, KIND)
    return act * (up + up_offset)


@triton.jit
def bias_of(bias_ptr, expert, bias_stride, row, inside):
    """Biases [BLOCK_N, 1] of some rows of one expert."""
    bias = tl.load(bias_ptr + expert * bias_stride + row, mask=inside, other=0.0)
    return bias.to(tl.float32)[:, None]


@triton.jit
def dense_kernel(
    x_ptr, weight_ptr, bias_ptr, out_ptr, order_ptr, of_block_ptr, limits_ptr, used_ptr,
    width, K, share, x_stride, weight_expert_stride, weight_row_stride, weight_k_stride, bias_stride,
    limit, alpha, up_offset,
    KIND: tl.constexpr, GATED: tl.constexpr, INTERLEAVED: tl.constexpr,
    HAS_LIMIT: tl.constexpr, SCALED: tl.constexpr, EVEN: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(1)
    if block < tl.load(used_ptr):
        pair, there = pairs_of(order_ptr, limits_ptr, block, BLOCK_M)
        expert = tl.load(of_block_ptr + block).to(tl.int64)
        n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
        n_inside = n < width
        row = 2 * n if INTERLEAVED else n
        up_row = 2 * n + 1 if INTERLEAVED else n + width
        k = tl.arange(0, BLOCK_K)
        x_at = x_ptr + (pair // share).to(tl.int64)[:, None] * x_stride + k[None, :]
        matrix = weight_ptr + expert * weight_expert_stride + k[None, :] * weight_k_stride
        w_at = matrix + row[:, None] * weight_row_stride
        up_at = matrix + up_row[:, None] * weight_row_stride
        acc = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
        acc_up = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
        for start in range(0, K, BLOCK_K):
            inside = n_inside[:, None] if EVEN else n_inside[:, None] & (start + k < K)[None, :]
            x_inside = there[:, None] if EVEN else there[:, None] & (start + k < K)[None, :]
            x = tl.load(x_at + start, mask=x_inside, other=0.0)
            w = tl.load(w_at + start * weight_k_stride, mask=inside, other=0.0)
            if WIDE:
                x, w = x.to(tl.float32), w.to(tl.float32)
            acc = tl.dot(w, x.T, acc, input_precision="ieee")
            if GATED:
                w = tl.load(up_at + start * weight_k_stride, mask=inside, other=0.0)
                w = w.to(tl.float32) if WIDE else w
                acc_up = tl.dot(w, x.T, acc_up, input_precision="ieee")
        if bias_ptr is not None:
            acc += bias_of(bias_ptr, expert, bias_stride, row, n_inside)
            if GATED:
                acc_up += bias_of(bias_ptr, expert, bias_stride, up_row, n_inside)
        if GATED:
            acc = gating(acc, acc_up, limit, alpha, up_offset, KIND, HAS_LIMIT, SCALED)
        elif KIND != "":
            acc = activate(acc, KIND)
        at = pair.to(tl.int64)[None, :] * width + n[:, None]
        tl.store(out_ptr + at, acc.to(out_ptr.dtype.element_ty), mask=n_inside[:, None] & there[None, :])


@triton.jit
def quant_kernel(
    x_ptr, codes_ptr, grid_ptr, scale_ptr, bias_ptr, out_ptr, order_ptr, of_block_ptr, limits_ptr, used_ptr,
    width, N, K, share, x_stride, codes_stride, grid_stride, bias_stride, limit, alpha, up_offset,
    KIND: tl.constexpr, GATED: tl.constexpr, HAS_LIMIT: tl.constexpr, SCALED: tl.constexpr,
    BITS: tl.constexpr, GROUP: tl.constexpr, HAS_MINIMUM: tl.constexpr,
    EVEN: tl.constexpr, BF16: tl.constexpr, INTERPRETED: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(1)
    if block < tl.load(used_ptr):
        pair, there = pairs_of(order_ptr, limits_ptr, block, BLOCK_M)
        expert = tl.load(of_block_ptr + block).to(tl.int64)
        n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
        n_inside = n < width
        codes = codes_ptr + expert * codes_stride
        grid = grid_ptr if grid_ptr is None else grid_ptr + expert * grid_stride
        x_row = x_ptr + (pair // share).to(tl.int64)[:, None] * x_stride
        acc = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
        acc_up = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
        for at in range(tl.cdiv(K, 128)):
            step = at + 0  # what is assigned is a tensor in the interpreter too
            k = step * 128 + tl.arange(0, 128)
            x_inside = there[:, None] if EVEN else there[:, None] & (k < K)[None, :]
            x = tl.load(x_row + k[None, :], mask=x_inside, other=0.0)
            w = weights(codes, grid, n, n_inside, N, step, BITS, GROUP, HAS_MINIMUM, BF16, INTERPRETED)
            x = x.to(w.dtype)
            acc = tl.dot(w, x.T, acc)
            if GATED:
                w = weights(
                    codes, grid, n + width, n_inside, N, step, BITS, GROUP, HAS_MINIMUM, BF16, INTERPRETED
                )  # fmt: skip
                acc_up = tl.dot(w, x.T, acc_up)
        if scale_ptr is not None:
            acc *= bias_of(scale_ptr, expert, N, n, n_inside)
            if GATED:
                acc_up *= bias_of(scale_ptr, expert, N, n + width, n_inside)
        if bias_ptr is not None:
            acc += bias_of(bias_ptr, expert, bias_stride, n, n_inside)
            if GATED:
                acc_up += bias_of(bias_ptr, expert, bias_stride, n + width, n_inside)
        if GATED:
            acc = gating(acc, acc_up, limit, alpha, up_offset, KIND, HAS_LIMIT, SCALED)
        elif KIND != "":
            acc = activate(acc, KIND)
        at = pair.to(tl.int64)[None, :] * width + n[:, None]
        tl.store(out_ptr + at, acc.to(out_ptr.dtype.element_ty), mask=n_inside[:, None] & there[None, :])


@triton.jit
def combine_kernel(
    parts_ptr, experts_ptr, weights_ptr, out_ptr, slots, count, width, weights_stride, BLOCK: tl.constexpr
):
    token = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for slot in range(slots):
        pair = token * slots + slot
        expert = tl.load(experts_ptr + pair)
        known = tl.where((expert >= 0) & (expert < count), width, 0)  # others wrote nothing
        part = tl.load(parts_ptr + pair * width + n, mask=n < known, other=0.0).to(tl.float32)
        total += tl.load(weights_ptr + token * weights_stride + slot).to(tl.float32) * part
    tl.store(out_ptr + token * width + n, total.to(out_ptr.dtype.element_ty), mask=n < width)
