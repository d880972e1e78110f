"""The choice of one token a row: temperature, min-p, top-k, top-p, in this order, without a sort.

What is left out is a threshold over exact float order (order.py). Top-p is drawn by refusal, as on the CPU: a
token drawn from all is in the set when those likelier weigh less than p; one that is not is refused with
all behind it, and another is drawn among the rest. Random numbers are those of the CPU's sampler, and sums
are float64, so that the text is the CPU's wherever the logits are.

    select      rows that take the likeliest are done; of a top-k ≤ 4096 a few more than k are gathered; of
                other rows the threshold is found
    draw_few    of gathered rows: all in registers, weights in float64
    draw_many   of other rows: sums of blocks, then one block of the choice, for each number drawn

Each row is one program's, which reads nothing of other rows. Bytes moved: 4 V a pass, out of the second-level
cache; select makes 3 for a small top-k, up to 18 for one over 4096; draw_many one and another for each number
drawn. What is gathered reaches the k-th largest maximum of columns, as on the CPU: the k-th value does too.
Source: ``optpipe_runtime.sampling.choice``, which it equals; the refusal is Flashinfer's (Ye et al. 2025).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
import triton
import triton.language as tl

from .draws import Settings
from .launch import Launch
from .order import LOWEST, columns_of, gather_set, largest, least_of, likelier, order_key, peak_of, row_block
from .uniform import uniform

FEW = 4096  # a top-k up to this is weighed in float64
NOT_NUMBERS, NONE_LEFT = -2, -1  # tokens of rows that hold NaN or +inf, or nothing but -inf
BLOCK, WARPS = 8192, 16  # 16 values a thread: 4 loads of 16 bytes of float32 in flight

DECIDED = tl.constexpr(0)
GATHERED = tl.constexpr(1)
WHOLE = tl.constexpr(2)


@triton.jit
def select_kernel(
    logits_ptr, floats_ptr, integers_ptr, tokens_ptr, states_ptr, peaks_ptr, values_ptr, ids_ptr,
    size, stride, BLOCK: tl.constexpr, FEW: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    logits = logits_ptr + row * stride
    values, ids = values_ptr + row * FEW, ids_ptr + row * FEW
    floor = tl.load(floats_ptr + row * 3 + 2)
    top_k = tl.load(integers_ptr + row * 3)
    peak, place, broken = peak_of(logits, size, BLOCK)
    kind = DECIDED
    token = tl.where(broken, -2, tl.where(peak == float("-inf"), -1, place))
    bound, cut, held = LOWEST + 0, size, 0
    if (token >= 0) & (top_k != 1):
        kind = WHOLE
        if (top_k > 0) & (top_k < size):
            if top_k <= FEW:
                kind = GATHERED
                held = _gathered(logits, size, top_k.to(tl.int32), peak, values, ids, FEW, BLOCK)
            else:
                bound, cut = largest(logits, size, top_k.to(tl.int32), peak, BLOCK)
        if (kind == WHOLE) & (floor > float("-inf")):
            least = _least(logits, size, (peak.to(tl.float64) + floor).to(tl.float32), BLOCK)
            cut = tl.where(least > bound, size, cut)
            bound = tl.maximum(least, bound)
    tl.store(tokens_ptr + row, token.to(tl.int64))
    tl.store(peaks_ptr + row, peak)
    tl.store(states_ptr + row * 4, kind)
    tl.store(states_ptr + row * 4 + 1, bound)
    tl.store(states_ptr + row * 4 + 2, cut)
    tl.store(states_ptr + row * 4 + 3, held)


@triton.jit
def _gathered(logits, size, top_k, peak, values, ids, FEW: tl.constexpr, BLOCK: tl.constexpr):
    """Write at least the ``top_k`` likeliest tokens in the order of ids; returns how many."""
    NARROW: tl.constexpr = 4096 if BLOCK > 4096 else BLOCK  # places and addresses take registers besides
    columns = columns_of(logits, size, BLOCK)
    lowest = (order_key(peak) * 0 + LOWEST).to(tl.int64)
    bound = least_of(columns, top_k, lowest, order_key(peak).to(tl.int64) + 1)
    held = gather_set(logits, size, bound, size, values, ids, FEW, NARROW)
    if held > FEW:  # many equal values
        bound, cut = largest(logits, size, top_k, peak, BLOCK)
        held = gather_set(logits, size, bound, cut, values, ids, FEW, NARROW)
    return held


@triton.jit
def _least(row_ptr, size, floor, BLOCK: tl.constexpr):
    """The least key of values ≥ ``floor``."""
    least = 0x7FFFFFFF
    for start in range(0, size, BLOCK):
        _, x = row_block(row_ptr, start, size, BLOCK)
        least = tl.minimum(least, tl.min(tl.where(x >= floor, order_key(x), 0x7FFFFFFF)))
    return least


@triton.jit
def draw_few_kernel(
    floats_ptr, integers_ptr, tokens_ptr, states_ptr, peaks_ptr, values_ptr, ids_ptr, FEW: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    if tl.load(states_ptr + row * 4) == GATHERED:
        temperature = tl.load(floats_ptr + row * 3)
        top_p = tl.load(floats_ptr + row * 3 + 1)
        seed = tl.load(integers_ptr + row * 3 + 1).to(tl.uint64, bitcast=True)
        index = tl.load(integers_ptr + row * 3 + 2).to(tl.uint64, bitcast=True)
        peak = tl.load(peaks_ptr + row).to(tl.float64)
        at = tl.arange(0, FEW)
        member = at < tl.load(states_ptr + row * 4 + 3)
        x = tl.load(values_ptr + row * FEW + at, mask=member, other=float("-inf"))
        key = order_key(x)
        member = member & _kept(key, at, tl.load(integers_ptr + row * 3).to(tl.int32))
        below = x.to(tl.float64) - peak
        member = member & (below >= tl.load(floats_ptr + row * 3 + 2))
        weight = tl.where(member, tl.exp(below / temperature), 0.0)
        goal = top_p * tl.sum(weight)
        place, attempt, more = 0, seed & 0, True
        while more:
            place = _place(tl.where(member, weight, 0.0), member, at, uniform(seed, index, attempt))
            mine = tl.max(tl.where(at == place, key, LOWEST - 1))
            member = member & likelier(key, at, mine, place)
            before = tl.sum(tl.where(member, weight, 0.0))
            more = (top_p < 1.0) & (before >= goal)
            attempt += 1
        tl.store(tokens_ptr + row, tl.load(ids_ptr + row * FEW + place).to(tl.int64))


@triton.jit
def _kept(key, at, top_k):
    """Which of a block of keys are the ``top_k`` likeliest; those past the end have the least key."""
    low = (top_k * 0 + LOWEST).to(tl.int64)
    bound = least_of(key, top_k, low, tl.max(key).to(tl.int64) + 1)
    equal = key == bound
    left = top_k - tl.sum((key > bound).to(tl.int32))
    return (key > bound) | (equal & (tl.cumsum(equal.to(tl.int32), 0) <= left))


@triton.jit
def _place(weight, member, at, drawn):
    """The first place at which the running sum of weights passes the drawn part of their total."""
    running = tl.cumsum(weight, 0)
    found = member & (running > drawn * tl.max(running))
    last = tl.max(tl.where(member, at, 0))  # for a product that was rounded up to the total
    return tl.minimum(tl.min(tl.where(found, at, 0x7FFFFFFF)), last)


@triton.jit
def draw_many_kernel(
    logits_ptr, floats_ptr, integers_ptr, tokens_ptr, states_ptr, peaks_ptr,
    size, stride, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    if tl.load(states_ptr + row * 4) == WHOLE:
        logits = logits_ptr + row * stride
        temperature = tl.load(floats_ptr + row * 3)
        top_p = tl.load(floats_ptr + row * 3 + 1)
        factor = (1.0 / temperature).to(tl.float32)
        seed = tl.load(integers_ptr + row * 3 + 1).to(tl.uint64, bitcast=True)
        index = tl.load(integers_ptr + row * 3 + 2).to(tl.uint64, bitcast=True)
        peak = tl.load(peaks_ptr + row)
        bound, cut = tl.load(states_ptr + row * 4 + 1), tl.load(states_ptr + row * 4 + 2)
        block = tl.arange(0, BLOCKS)
        token, attempt, more = cut * 0, seed & 0, True
        goal = -peak.to(tl.float64) * 0.0
        while more:
            sums = tl.zeros((BLOCKS,), tl.float64)
            for start in range(0, size, BLOCK):
                at, x = row_block(logits, start, size, BLOCK)
                weight = _weight(x, at, peak, factor, bound, cut).to(tl.float64)
                sums = tl.where(block == start // BLOCK, tl.sum(weight), sums)
            if attempt == 0:
                goal = top_p * tl.sum(sums)
            elif tl.sum(sums) < goal:  # those before the token that was drawn
                more = False
            if more:
                token = _token(
                    logits, size, sums, uniform(seed, index, attempt), peak, factor, bound, cut, BLOCK, BLOCKS
                )
                bound, cut = order_key(tl.load(logits + token).to(tl.float32)), token
                attempt += 1
                more = top_p < 1.0
        tl.store(tokens_ptr + row, token.to(tl.int64))


@triton.jit
def _weight(x, at, peak, factor, bound, cut):
    """exp((x − peak) / temperature) in float32 of the tokens in the set, 0 of others."""
    member = likelier(order_key(x), at, bound, cut)
    return tl.where(member, tl.exp((x - peak) * factor), 0.0)


@triton.jit
def _token(logits, size, sums, drawn, peak, factor, bound, cut, BLOCK: tl.constexpr, BLOCKS: tl.constexpr):
    """The first token at which the running sum of weights passes the drawn part of their total."""
    block = tl.arange(0, BLOCKS)
    running = tl.cumsum(sums, 0)
    target = drawn * tl.max(running)
    last = tl.max(tl.where(sums > 0.0, block, 0))
    chosen = tl.minimum(tl.min(tl.where((running > target) & (sums > 0.0), block, BLOCKS)), last)
    before = tl.sum(tl.where(block < chosen, sums, 0.0))
    at, x = row_block(logits, chosen * BLOCK, size, BLOCK)
    weight = _weight(x, at, peak, factor, bound, cut).to(tl.float64)
    found = (weight > 0.0) & (tl.cumsum(weight, 0) > target - before)
    last = tl.max(tl.where(weight > 0.0, at, 0))
    return tl.minimum(tl.min(tl.where(found, at, 0x7FFFFFFF)), last)


def launches(logits: torch.Tensor, chosen: Settings, tokens: torch.Tensor) -> tuple[Launch, ...]:
    """The launches of a step: logits [R, V] with contiguous rows, tokens [R] int64."""
    rows, size = logits.shape
    device = logits.device
    states = torch.empty((rows, 4), dtype=torch.int32, device=device)
    peaks = torch.empty(rows, dtype=torch.float32, device=device)
    values = torch.empty((rows, FEW), dtype=torch.float32, device=device)
    ids = torch.empty((rows, FEW), dtype=torch.int32, device=device)
    floats, integers = chosen.floats, chosen.integers
    halves = 1 if logits.dtype is torch.float32 else 2  # of 16 bits fewer a thread: they are converted
    wide = triton.next_power_of_2(size)
    block, drawn = min(BLOCK // halves, wide), min(BLOCK // 2, wide)
    blocks = triton.next_power_of_2(triton.cdiv(size, drawn))
    stride = logits.stride(0)
    grid = (rows, 1, 1)
    return (
        Launch(
            select_kernel, grid, (logits, floats, integers, tokens, states, peaks, values, ids, size, stride),
            {"BLOCK": block, "FEW": FEW}, num_warps=WARPS // halves, num_stages=1,
        ),
        Launch(
            draw_few_kernel, grid, (floats, integers, tokens, states, peaks, values, ids),
            {"FEW": FEW}, num_warps=WARPS, num_stages=1,
        ),
        Launch(
            draw_many_kernel, grid, (logits, floats, integers, tokens, states, peaks, size, stride),
            {"BLOCK": drawn, "BLOCKS": blocks}, num_warps=WARPS, num_stages=1,
        ),
    )  # fmt: skip


def sample(logits: torch.Tensor, chosen: Settings) -> torch.Tensor:
    """A token for each row.

    Args:
        logits: [R, V] float32, float16 or bfloat16, after everything but temperature, min-p, top-k and top-p.
        chosen: of R rows.

    Returns:
        [R] int64; NOT_NUMBERS for a row with NaN or +inf, NONE_LEFT for one with nothing but -inf.
    """
    tokens = torch.empty(logits.shape[0], dtype=torch.int64, device=logits.device)
    if logits.shape[0]:
        for launch in launches(logits, chosen, tokens):
            launch.run()
    return tokens


def shipped(key: str) -> Iterator[Launch]:
    """A Llama's vocabulary, as float32 and bfloat16."""
    for dtype in (torch.float32, torch.bfloat16):
        logits = torch.empty(64, 128256, device="meta", dtype=dtype)
        chosen = Settings(
            torch.empty(64, 3, device="meta", dtype=torch.float64),
            torch.empty(64, 3, device="meta", dtype=torch.int64),
        )
        select, few, many = launches(logits, chosen, torch.empty(64, device="meta", dtype=torch.int64))
        title = f"{many.title} of {logits.element_size()} bytes"
        yield from (select, few, many) if dtype is torch.float32 else (select, replace(many, name=title))


def expects(launch: Launch, key: str) -> tuple[str, ...]:
    """16 bytes a load of logits."""
    return () if launch.kernel is draw_few_kernel else ("ld.global.v4.b32",)
