"""``quant_embedding``: rows of a table stored in 4 or 8 bits, widened as they are read.

    y[t, k] = (u − 2^(bits−1)) · scale[k // g]    or    u · scale[k // g] + minimum[k // g]      of row ids[t]

Shapes: ids [...] int32 or int64, packed [V, K·bits/32] int32, scale and minimum [V, K/g], y [..., K].
Bytes moved: K·bits/8 and the groups' scales read, 2 or 4 K written, a token.
Source: equals the body ``optpipe.dialect.quant_embedding``; the table is as artifacts store it, because rows
of the layout that matrix products read (packing.py) lie apart.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from .launch import Launch

INPUTS = 1024  # of a row a program: 8 a thread


@triton.jit
def quant_embedding_kernel(
    ids_ptr, packed_ptr, scale_ptr, minimum_ptr, out_ptr, count, words, groups, group,
    BITS: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    CODES: tl.constexpr = 32 // BITS
    token = tl.program_id(0).to(tl.int64)
    row = tl.load(ids_ptr + token).to(tl.int64)
    known = (row >= 0) & (row < count)
    word = tl.program_id(1) * WORDS + tl.arange(0, WORDS)
    code = tl.arange(0, CODES)
    inside = word < tl.where(known, words, 0)
    packed = tl.load(packed_ptr + row * words + word, mask=inside, other=0)
    codes = (packed[:, None] >> (code * BITS)[None, :]) & ((1 << BITS) - 1)
    k = word[:, None] * CODES + code[None, :]
    at = row * groups + k // group
    scale = tl.load(scale_ptr + at, mask=inside[:, None], other=0.0).to(tl.float32)
    if minimum_ptr is None:
        value = (codes - (1 << (BITS - 1))).to(tl.float32) * scale
    else:
        low = tl.load(minimum_ptr + at, mask=inside[:, None], other=0.0).to(tl.float32)
        value = codes.to(tl.float32) * scale + low
    out = value.to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + token * words * CODES + k, out, mask=(word < words)[:, None])


def launches(
    ids: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    minimum: torch.Tensor | None,
    out: torch.Tensor,
    *,
    bits: int,
) -> tuple[Launch, ...]:
    """The one launch: ids [T], the contiguous table, out [T, K] contiguous.

    Ids outside the table give rows of zeros: a captured step is padded with such.
    """
    count, words = packed.shape
    groups = scale.shape[1]
    args = (ids, packed, scale, minimum, out, count, words, groups, words * 32 // bits // groups)
    at_once = INPUTS * bits // 32
    grid = (ids.shape[0], triton.cdiv(words, at_once), 1)
    title = f"quant_embedding w{bits}" + ("" if minimum is None else " with a minimum")
    constants = {"BITS": bits, "WORDS": at_once}
    return (Launch(quant_embedding_kernel, grid, args, constants, num_stages=1, name=title),)


def quant_embedding(
    ids: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    minimum: torch.Tensor | None = None,
    *,
    bits: int,
    group: int,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """The dialect's ``quant_embedding`` [..., K].

    Args:
        dtype: of the result.
    """
    width = packed.shape[1] * 32 // bits
    out = torch.empty((*ids.shape, width), dtype=dtype, device=ids.device)
    if out.numel():
        flat = ids.reshape(-1)
        for launch in launches(flat, packed, scale, minimum, out.view(-1, width), bits=bits):
            launch.run()
    return out


def shipped(key: str) -> Iterator[Launch]:
    """A Llama's table in 4 and in 8 bits."""
    for bits, groups, low in ((4, 32, False), (4, 128, True), (8, 1, False)):
        ids = torch.empty(64, device="meta", dtype=torch.int64)
        packed = torch.empty(128256, 4096 * bits // 32, device="meta", dtype=torch.int32)
        scale = torch.empty(128256, groups, device="meta", dtype=torch.float16)
        out = torch.empty(64, 4096, device="meta", dtype=torch.bfloat16)
        yield from launches(ids, packed, scale, scale if low else None, out, bits=bits)


def expects(launch: Launch, key: str) -> tuple[str, ...]:
    """Words of 4 bits become 16 bytes each."""
    return ("st.global.v4.b32",) if launch.constants["BITS"] == 4 else ()
