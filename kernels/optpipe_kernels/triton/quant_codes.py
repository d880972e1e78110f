"""Blocks of a quantized weight in registers: from words in ``packing``'s layout to 16-bit floats.

No integer is converted. Bits that lie in the fraction of a 16-bit float whose last bit is worth one are a
number: 0x6400 | u is 1024 + u in float16, 0x4300 | u is 128 + u in bfloat16. Both halves of a word are
treated at once, and the compiler pairs what follows into the packed instructions of 16-bit floats:

    float16          (u | 0x6400) − (1024 + 2^(bits−1))
    bfloat16 4 bits  (u | 0x4300) − 136
    bfloat16 8 bits  (u & 127 | 0x4300) − (u & 128 ^ 0x4380)   128 + (u mod 128) − (128 if u ≥ 128, or 256)

Every difference is exact. Weights are then rounded once, by the product with the scale (or the tl.fma that
adds the middle); with one scale a row they stay integers. The dot takes them as its left operand, which
``wgmma`` reads from registers: nothing dequantized goes through memory.

DRY means by the interpreter: bfloat16 is only bits to it, so the same numbers are held in float32; and it
knows no assembly, of which there is one instruction: tl.fma of pairs costs two more, which turn pairs around.
Source: the magic numbers are those of Kim et al. 2022, "Who Says Elephants Can't Run".
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sixteen(bits, BF16: tl.constexpr, DRY: tl.constexpr):
    """The low halves of int32 words as floats."""
    half = (bits & 0xFFFF).to(tl.uint16)
    value = half.to(tl.bfloat16, bitcast=True) if BF16 else half.to(tl.float16, bitcast=True)
    return value.to(tl.float32) if BF16 and DRY else value


@triton.jit
def halves(words, BF16: tl.constexpr, DRY: tl.constexpr):
    """Both halves of words [R, 16] as floats [R, 32], low halves at even places."""
    low, high = sixteen(words, BF16, DRY), sixteen(words >> 16, BF16, DRY)
    return tl.join(low, high).reshape(words.shape[0], 2 * words.shape[1])


@triton.jit
def piece(words, AT: tl.constexpr, BITS: tl.constexpr, BF16: tl.constexpr, DRY: tl.constexpr):
    """Piece AT of a slab: u − 2^(BITS−1) as floats [R, 32] of words [R, 16]."""
    words = words >> (BITS * AT)
    if BITS == 4:
        bits = words & 0x000F000F
        if BF16:
            centred = halves(bits | 0x43004300, BF16, DRY) - 136.0
        else:
            centred = halves(bits | 0x64006400, BF16, DRY) - 1032.0
    elif BF16:
        number = halves((words & 0x007F007F) | 0x43004300, BF16, DRY)
        centred = number - halves((words & 0x00800080) ^ 0x43804380, BF16, DRY)
    else:
        centred = halves((words & 0x00FF00FF) | 0x64006400, BF16, DRY) - 1152.0
    return centred


@triton.jit
def grid_pair(
    grid_ptr, rows, inside, N, block, AT: tl.constexpr,
    GROUP: tl.constexpr, HAS_MINIMUM: tl.constexpr, BF16: tl.constexpr, DRY: tl.constexpr,
):  # fmt: skip
    """Scale and middle [R] of piece AT of a block's four; on the symmetric grid the second means nothing."""
    ODD: tl.constexpr = 0 if HAS_MINIMUM or GROUP == 128 else (AT * 32 // GROUP) % 2
    if GROUP == 0:
        at = block * 0
    elif HAS_MINIMUM or GROUP == 128:
        at = block * (128 // GROUP) + AT * 32 // GROUP
    else:
        at = block * (64 // GROUP) + AT * 16 // GROUP
    word = tl.load(grid_ptr + at * tl.full((), 1, tl.int64) * N + rows, mask=inside, other=0)
    return sixteen(word >> (16 * ODD), BF16, DRY), sixteen(word >> 16, BF16, DRY)


@triton.jit
def scale_and_add(x, scale, middle, BF16: tl.constexpr, DRY: tl.constexpr):
    """x · scale + middle, rounded once; of one shape."""
    if DRY:
        value = tl.fma(x, scale, middle)
    elif BF16:
        value = tl.inline_asm_elementwise(
            "fma.rn.bf16x2 $0, $1, $2, $3;", "=r,r,r,r", [x, scale, middle], tl.bfloat16, is_pure=True, pack=2
        )
    else:
        value = tl.inline_asm_elementwise(
            "fma.rn.f16x2 $0, $1, $2, $3;", "=r,r,r,r", [x, scale, middle], tl.float16, is_pure=True, pack=2
        )
    return value


@triton.jit
def on_grid(
    centred, grid_ptr, rows, inside, N, block, AT: tl.constexpr,
    GROUP: tl.constexpr, HAS_MINIMUM: tl.constexpr, BF16: tl.constexpr, DRY: tl.constexpr,
):  # fmt: skip
    """centred · scale (+ middle) of piece AT of four [R, 32] of a block, rounded to 16 bits."""
    scale, middle = grid_pair(grid_ptr, rows, inside, N, block, AT, GROUP, HAS_MINIMUM, BF16, DRY)
    if HAS_MINIMUM:
        scale = scale[:, None].broadcast_to(centred.shape)
        middle = middle[:, None].broadcast_to(centred.shape)
        value = scale_and_add(centred, scale, middle, BF16, DRY)
    else:
        value = centred * scale[:, None]
    return value.to(tl.bfloat16).to(tl.float32) if BF16 and DRY else value


@triton.jit
def words_of(codes_ptr, rows, inside, N, slab):
    """The words [R, 16] of one slab; 0 for rows that are not inside."""
    at = (rows * 16)[:, None] + tl.arange(0, 16)[None, :]
    return tl.load(codes_ptr + slab * tl.full((), 16, tl.int64) * N + at, mask=inside[:, None], other=0)


@triton.jit
def weights(
    codes_ptr, grid_ptr, rows, inside, N, block,
    BITS: tl.constexpr, GROUP: tl.constexpr, HAS_MINIMUM: tl.constexpr,
    BF16: tl.constexpr, DRY: tl.constexpr,
):  # fmt: skip
    """The weights [R, 128] of 128 inputs, in 16 bits (as float32 under DRY).

    Args:
        rows, inside: int32 and bool [R], rows of the weight, N of them in memory.
        block: which 128 inputs.
        GROUP: 0 for one group a row; on the symmetric grid its scale is left to the finished sums.
    """
    if BITS == 4:
        words = words_of(codes_ptr, rows, inside, N, block)
        p0, p1 = piece(words, 0, BITS, BF16, DRY), piece(words, 1, BITS, BF16, DRY)
        p2, p3 = piece(words, 2, BITS, BF16, DRY), piece(words, 3, BITS, BF16, DRY)
    else:
        words = words_of(codes_ptr, rows, inside, N, 2 * block)
        p0, p1 = piece(words, 0, BITS, BF16, DRY), piece(words, 1, BITS, BF16, DRY)
        words = words_of(codes_ptr, rows, inside, N, 2 * block + 1)
        p2, p3 = piece(words, 0, BITS, BF16, DRY), piece(words, 1, BITS, BF16, DRY)
    if GROUP > 0 or HAS_MINIMUM:
        p0 = on_grid(p0, grid_ptr, rows, inside, N, block, 0, GROUP, HAS_MINIMUM, BF16, DRY)
        p1 = on_grid(p1, grid_ptr, rows, inside, N, block, 1, GROUP, HAS_MINIMUM, BF16, DRY)
        p2 = on_grid(p2, grid_ptr, rows, inside, N, block, 2, GROUP, HAS_MINIMUM, BF16, DRY)
        p3 = on_grid(p3, grid_ptr, rows, inside, N, block, 3, GROUP, HAS_MINIMUM, BF16, DRY)
    # The order that lets the compiler carry the dot's layout back to the loaded words.
    pairs = tl.join(tl.join(p0, p1), tl.join(p2, p3))
    return pairs.permute(0, 3, 2, 1).reshape(rows.shape[0], 128)
