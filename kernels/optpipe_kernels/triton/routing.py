"""Which tokens an expert has: pairs (token, slot) put in the order of their experts, on the device.

    experts      [T, S], flat: expert of pair p = t · S + s
    order        [blocks · BLOCK_M] int32: pairs, expert by expert, ascending within one; every expert begins
                 at a multiple of BLOCK_M, and what is behind its last pair is not written
    of_block     [blocks] int32: the expert of BLOCK_M places
    limits       [blocks] int32: the first place behind the pairs of the block's expert
    used         [1] int32: how many blocks have pairs

The host knows T and S only, so that ``blocks`` is the most that there can be, and a captured step stays valid
whatever the router says. Nothing is counted by atomics in memory: a chunk of pairs counts its experts, then
every chunk knows where its own begin, and a pair its rank among those of its chunk. Pairs whose expert is
outside [0, E) have no place.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .launch import Launch

CHUNK = 512  # pairs a program; a decode step has one chunk, and then one launch
STEP = 16  # pairs that all pairs of a chunk are compared with at once


@triton.jit
def bin_of(experts_ptr, at, pairs, count, BINS: tl.constexpr):
    """The experts of pairs as int32; BINS − 1, which is no expert, for those without one."""
    expert = tl.load(experts_ptr + at, mask=at < pairs, other=-1)
    known = (expert >= 0) & (expert < count)
    return tl.where(known, expert, BINS - 1).to(tl.int32)


@triton.jit(do_not_specialize=["pairs"])
def count_kernel(experts_ptr, counts_ptr, pairs, count, CHUNK: tl.constexpr, BINS: tl.constexpr):
    chunk = tl.program_id(0)
    at = chunk * CHUNK + tl.arange(0, CHUNK)
    counts = tl.histogram(bin_of(experts_ptr, at, pairs, count, BINS), BINS)
    tl.store(counts_ptr + chunk * BINS + tl.arange(0, BINS), counts)


@triton.jit(do_not_specialize=["pairs", "chunks"])
def place_kernel(
    experts_ptr, counts_ptr, order_ptr, of_block_ptr, limits_ptr, used_ptr, pairs, count, chunks,
    CHUNK: tl.constexpr, BINS: tl.constexpr, BLOCK_M: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    chunk = tl.program_id(0)
    place = chunk * CHUNK + tl.arange(0, CHUNK)
    mine = bin_of(experts_ptr, place, pairs, count, BINS)
    expert = tl.arange(0, BINS)
    total = tl.zeros((BINS,), tl.int32)
    before = tl.zeros((BINS,), tl.int32)
    if counts_ptr is None:
        total += tl.histogram(mine, BINS)
    else:
        for other in range(chunks):
            counts = tl.load(counts_ptr + other * BINS + expert)
            total += counts
            before += tl.where(other < chunk, counts, 0)
    blocks = tl.where(expert < count, (total + BLOCK_M - 1) // BLOCK_M, 0)
    first = tl.cumsum(blocks, 0) - blocks
    # The blocks of an expert, shared among the chunks' programs.
    for turn in range(chunk, tl.max(blocks), chunks):
        tl.store(of_block_ptr + first + turn, expert, mask=turn < blocks)
        tl.store(limits_ptr + first + turn, first * BLOCK_M + total, mask=turn < blocks)
    if chunk == 0:
        tl.store(used_ptr, tl.sum(blocks))
    rank = tl.zeros((CHUNK,), tl.int32)
    for start in range(chunk * CHUNK, (chunk + 1) * CHUNK, STEP):
        at = start + tl.arange(0, STEP)
        others = bin_of(experts_ptr, at, pairs, count, BINS)
        same = (mine[:, None] == others[None, :]) & (at[None, :] < place[:, None])
        rank += tl.sum(same.to(tl.int32), axis=1)
    where = tl.gather(first * BLOCK_M + before, mine, 0) + rank
    tl.store(order_ptr + where, place, mask=mine < BINS - 1)


@dataclass(frozen=True, slots=True)
class Order:
    """The module's arrays.

    Attributes:
        order, of_block, limits, used: as drawn above.
        blocks: the most blocks there can be.
    """

    order: torch.Tensor
    of_block: torch.Tensor
    limits: torch.Tensor
    used: torch.Tensor
    blocks: int


def launches(experts: torch.Tensor, count: int, block_m: int) -> tuple[Order, tuple[Launch, ...]]:
    """Room for the order, and the one or two launches that fill it.

    Args:
        experts: [T, S] int32 or int64, contiguous; ids outside [0, E) have no expert.
        count: E.
        block_m: pairs a block.
    """
    pairs = experts.numel()
    blocks = max(1, pairs // block_m + min(count, pairs))

    def room(size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.int32, device=experts.device)

    order = Order(room(blocks * block_m), room(blocks), room(blocks), room(1), blocks)
    chunk = min(CHUNK, max(STEP, triton.next_power_of_2(pairs)))
    chunks = max(1, triton.cdiv(pairs, chunk))
    bins = triton.next_power_of_2(count + 1)
    counts = room(chunks * bins) if chunks > 1 else None
    constants = {"CHUNK": chunk, "BINS": bins, "BLOCK_M": block_m, "STEP": STEP}
    args = (experts, counts, order.order, order.of_block, order.limits, order.used, pairs, count, chunks)
    last = Launch(place_kernel, (chunks, 1, 1), args, constants, num_warps=8, num_stages=1)
    if counts is None:
        return order, (last,)
    constants = {"CHUNK": chunk, "BINS": bins}
    first = Launch(
        count_kernel, (chunks, 1, 1), (experts, counts, pairs, count), constants, num_warps=8, num_stages=1
    )
    return order, (first, last)
