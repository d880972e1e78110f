"""Floats in their order: what is the k-th largest of a row, without sorting the row.

A float's key is an int32 that orders as the float does, so that a threshold is found exactly by halving a
range of integers: three thresholds a pass over the row quarter it. -0 and 0 have one key, as they are equal.
Thresholds are int32 as keys are; the range between two of them may be wider, and is int64.
A set of the likeliest tokens is a threshold (key, cut): all of a greater key, and those of this key whose id
is below the cut. "Likelier" means greater, or equal with a lower id.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOWEST = tl.constexpr(-2139095040)  # the key of the least value over -inf; that of -inf is one less


@triton.jit
def order_key(x):
    """The key of x float32, which is not NaN."""
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def likelier(key, at, bound, cut):
    """Whether tokens with these keys and ids are in the set (bound, cut)."""
    return (key > bound) | ((key == bound) & (at < cut))


@triton.jit
def row_block(row_ptr, start, size, BLOCK: tl.constexpr):
    """Ids from ``start`` on, and their values as float32, -inf past the end."""
    at = start + tl.arange(0, BLOCK)
    return at, tl.load(row_ptr + at, mask=at < size, other=float("-inf")).to(tl.float32)


@triton.jit
def peak_of(row_ptr, size, BLOCK: tl.constexpr):
    """The largest value of a row, the lowest id that has it, and whether any value is NaN or +inf."""
    peak = float("-inf")
    place = 0
    broken = 0
    for start in range(0, size, BLOCK):
        at, x = row_block(row_ptr, start, size, BLOCK)
        broken += tl.sum(((x != x) | (x == float("inf"))).to(tl.int32))
        top = tl.max(x)
        first = tl.min(tl.where(x == top, at, size))
        place = tl.where(top > peak, first, place)
        peak = tl.maximum(top, peak)
    return peak, place, broken > 0


@triton.jit
def columns_of(row_ptr, size, BLOCK: tl.constexpr):
    """The keys of the largest values of columns [BLOCK]: column c has values c, c + BLOCK, c + 2 BLOCK, …"""
    columns = tl.full((BLOCK,), float("-inf"), tl.float32)
    for start in range(0, size, BLOCK):
        _, x = row_block(row_ptr, start, size, BLOCK)
        columns = tl.maximum(columns, x)
    return order_key(columns)


@triton.jit
def least_of(keys, count, low, high):
    """The greatest key that at least ``count`` of a block of keys reach; LOWEST when there is none.

    Args:
        low, high: int64 scalars around it: low counts as reached, high is reached by fewer.
    """
    while high - low > 1:
        middle = low + (high - low) // 2
        enough = tl.sum((keys >= middle.to(tl.int32)).to(tl.int32)) >= count
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle)
    return low.to(tl.int32)


@triton.jit
def largest(row_ptr, size, count, peak, BLOCK: tl.constexpr):
    """The set (bound, cut) of the ``count`` likeliest tokens over -inf; of all of them where they are fewer.

    Args:
        count: int32 scalar, at least 1.
        peak: the row's largest value, a number.
    """
    low = (order_key(peak) * 0 + LOWEST).to(tl.int64)  # at least ``count`` keys reach it, or it is the least
    high = order_key(peak).to(tl.int64) + 1  # fewer than ``count`` keys reach it
    above = 0  # how many reach ``high``
    exact = False
    while (high - low > 1) & (not exact):
        first = low + tl.maximum((high - low) // 4, 1)
        second = low + (high - low) // 2
        third = high - tl.maximum((high - low) // 4, 1)
        firsts, seconds, thirds = 0, 0, 0
        for start in range(0, size, BLOCK):
            _, x = row_block(row_ptr, start, size, BLOCK)
            key = order_key(x)
            firsts += tl.sum((key >= first.to(tl.int32)).to(tl.int32))
            seconds += tl.sum((key >= second.to(tl.int32)).to(tl.int32))
            thirds += tl.sum((key >= third.to(tl.int32)).to(tl.int32))
        exact = (firsts == count) | (seconds == count) | (thirds == count)
        if exact:
            low = tl.where(firsts == count, first, tl.where(seconds == count, second, third))
        elif thirds >= count:
            low = third
        elif seconds >= count:
            low, high, above = second, third, thirds
        elif firsts >= count:
            low, high, above = first, second, seconds
        else:
            high, above = first, firsts
    bound = low.to(tl.int32)
    cut = size
    if not exact:
        cut = _cut(row_ptr, size, bound, count - above, BLOCK)
    return bound, cut


@triton.jit
def _cut(row_ptr, size, bound, wanted, BLOCK: tl.constexpr):
    """The id behind the first ``wanted`` tokens that have the key ``bound``; ``size`` when they are fewer."""
    cut = size
    seen = 0
    for start in range(0, size, BLOCK):
        at, x = row_block(row_ptr, start, size, BLOCK)
        equal = (order_key(x) == bound).to(tl.int32)
        behind = (equal == 1) & (seen + tl.cumsum(equal, 0) > wanted)
        cut = tl.minimum(cut, tl.min(tl.where(behind, at, size)))
        seen += tl.sum(equal)
    return cut


@triton.jit
def gather_set(row_ptr, size, bound, cut, values_ptr, ids_ptr, room, BLOCK: tl.constexpr):
    """Write the first ``room`` values and ids of a set, in the order of ids; returns how many there are."""
    count = 0
    for start in range(0, size, BLOCK):
        at, x = row_block(row_ptr, start, size, BLOCK)
        member = likelier(order_key(x), at, bound, cut) & (at < size)
        place = count + tl.cumsum(member.to(tl.int32), 0) - 1
        keep = member & (place < room)
        tl.store(values_ptr + place, x, mask=keep)
        tl.store(ids_ptr + place, at, mask=keep)
        count += tl.sum(member.to(tl.int32))
    return count
