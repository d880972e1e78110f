"""Random numbers on the device, bit for bit those of the CPU's sampler.

    uniform(seed, index, attempt) = (blake2b₆₄(seed ‖ index ‖ attempt, person = "optpipe token") >> 11) · 2⁻⁵³

The message is three 64-bit words, so that one compression of twelve rounds makes a number, and thirteen of
the sixteen message words are 0: a round needs to know only where the other three stand in its schedule.
Source: RFC 7693; equals ``optpipe_runtime.sampling.uniform`` (a test holds them together).
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def turned(x, RIGHT: tl.constexpr):
    """x uint64 turned right."""
    return (x >> RIGHT) | (x << (64 - RIGHT))


@triton.jit
def mix(a, b, c, d, first, second):
    """The mixing function G of RFC 7693, section 3.1."""
    a = a + b + first
    d = turned(d ^ a, 32)
    c = c + d
    b = turned(b ^ c, 24)
    a = a + b + second
    d = turned(d ^ a, 16)
    c = c + d
    b = turned(b ^ c, 63)
    return a, b, c, d


@triton.jit
def word(SLOT: tl.constexpr, at_seed, at_index, at_attempt, seed, index, attempt):
    """The message word that a round's schedule has at SLOT."""
    none = seed & 0
    return (
        tl.where(at_seed == SLOT, seed, none)
        | tl.where(at_index == SLOT, index, none)
        | tl.where(at_attempt == SLOT, attempt, none)
    )


@triton.jit
def constant(like, HIGH: tl.constexpr, LOW: tl.constexpr):
    """HIGH · 2³² + LOW as uint64: in halves, because versions disagree on the type of literals over 2⁶³."""
    zero = like & 0
    return ((zero | HIGH) << 32) | LOW


@triton.jit
def uniform(seed, index, attempt):
    """A float64 from 0 up to 1 with 53 random bits.

    Args:
        seed, index, attempt: uint64, scalars or blocks of one shape.
    """
    v8, v9 = constant(seed, 0x6A09E667, 0xF3BCC908), constant(seed, 0xBB67AE85, 0x84CAA73B)
    v10, v11 = constant(seed, 0x3C6EF372, 0xFE94F82B), constant(seed, 0xA54FF53A, 0x5F1D36F1)
    v12, v13 = constant(seed, 0x510E527F, 0xADE682D1), constant(seed, 0x9B05688C, 0x2B3E6C1F)
    v14, v15 = constant(seed, 0x1F83D9AB, 0xFB41BD6B), constant(seed, 0x5BE0CD19, 0x137E2179)
    start = v8 ^ 0x01010008  # 8 bytes out, no key, one leaf
    v0, v1, v2, v3, v4, v5 = start, v9, v10, v11, v12, v13
    v6 = v14 ^ constant(seed, 0x20657069, 0x7074706F)  # "optpipe " and "token", little end first
    v7 = v15 ^ constant(seed, 0x0000006E, 0x656B6F74)
    v12 = v12 ^ 24  # bytes of the message
    v14 = v14 ^ constant(seed, 0xFFFFFFFF, 0xFFFFFFFF)  # the last block; triton 3.6 has no ~ of uint64
    # The slots of words 0, 1 and 2 in the schedules of rounds 0 to 11: 4 bits a round, the first one lowest.
    seeds = constant(seed, 0xA0F6, 0x9841D3A0)
    indices = constant(seed, 0x816C, 0x52E93D81)
    attempts = constant(seed, 0xB219, 0xED0485B2)
    for _ in range(12):
        i, j, k = seeds & 15, indices & 15, attempts & 15
        m0, m1 = word(0, i, j, k, seed, index, attempt), word(1, i, j, k, seed, index, attempt)
        m2, m3 = word(2, i, j, k, seed, index, attempt), word(3, i, j, k, seed, index, attempt)
        m4, m5 = word(4, i, j, k, seed, index, attempt), word(5, i, j, k, seed, index, attempt)
        m6, m7 = word(6, i, j, k, seed, index, attempt), word(7, i, j, k, seed, index, attempt)
        v0, v4, v8, v12 = mix(v0, v4, v8, v12, m0, m1)
        v1, v5, v9, v13 = mix(v1, v5, v9, v13, m2, m3)
        v2, v6, v10, v14 = mix(v2, v6, v10, v14, m4, m5)
        v3, v7, v11, v15 = mix(v3, v7, v11, v15, m6, m7)
        m0, m1 = word(8, i, j, k, seed, index, attempt), word(9, i, j, k, seed, index, attempt)
        m2, m3 = word(10, i, j, k, seed, index, attempt), word(11, i, j, k, seed, index, attempt)
        m4, m5 = word(12, i, j, k, seed, index, attempt), word(13, i, j, k, seed, index, attempt)
        m6, m7 = word(14, i, j, k, seed, index, attempt), word(15, i, j, k, seed, index, attempt)
        v0, v5, v10, v15 = mix(v0, v5, v10, v15, m0, m1)
        v1, v6, v11, v12 = mix(v1, v6, v11, v12, m2, m3)
        v2, v7, v8, v13 = mix(v2, v7, v8, v13, m4, m5)
        v3, v4, v9, v14 = mix(v3, v4, v9, v14, m6, m7)
        seeds, indices, attempts = seeds >> 4, indices >> 4, attempts >> 4
    return ((start ^ v0 ^ v8) >> 11).to(tl.float64) * 1.1102230246251565e-16
