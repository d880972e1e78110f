"""What a request's rules do to its row of logits: bias, penalties, tokens that may not come, a mask.

    1. v = logit + bias
    2. in prompt or output:  v = v / repetition if v > 0 else v · repetition
                             v = v − frequency · count − presence · [count > 0]
    3. v = -inf where the token is banned or its bit of the mask is 0

One launch copies rows as float32 and masks them; another edits the few tokens that a rule names, each
from the model's own logit, so that every entry stands alone. Rows stay as they are; the result is new.
Bytes moved: 8 V + V/8 a row, 20 an entry.
Equals: ``optpipe_runtime.sampling.state.RowState.edited``, which gives the order.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from optpipe.targets import protocol

from .launch import Launch

BLOCK = 4096  # logits a program of the copy: 16 bytes a load, 8 loads a thread
ENTRIES = 256  # entries that a program treats at once
PENALIZED, BANNED = tl.constexpr(protocol.PENALIZED), tl.constexpr(protocol.BANNED)


@triton.jit
def mask_kernel(
    logits_ptr, bits_ptr, masked_ptr, out_ptr, size, stride, words, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(logits_ptr + row * stride + at, mask=at < size, other=0.0).to(tl.float32)
    if bits_ptr is not None:
        line = tl.load(masked_ptr + row)
        masked = tl.where(line >= 0, size, 0)
        word = tl.load(bits_ptr + line.to(tl.int64) * words + at // 32, mask=at < masked, other=-1)
        x = tl.where(((word >> (at % 32)) & 1) == 1, x, float("-inf"))
    tl.store(out_ptr + row * size + at, x, mask=at < size)


@triton.jit
def edit_kernel(
    logits_ptr, starts_ptr, ids_ptr, biases_ptr, counts_ptr, flags_ptr, penalties_ptr,
    bits_ptr, masked_ptr, out_ptr, size, stride, words, ENTRIES: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(starts_ptr + row), tl.load(starts_ptr + row + 1)
    repetition = tl.load(penalties_ptr + row * 3)
    presence, frequency = tl.load(penalties_ptr + row * 3 + 1), tl.load(penalties_ptr + row * 3 + 2)
    for start in range(begin, end, ENTRIES):
        entry = start + tl.arange(0, ENTRIES)
        there = entry < end
        token = tl.load(ids_ptr + entry, mask=there, other=0)
        x = tl.load(logits_ptr + row * stride + token, mask=there, other=0.0).to(tl.float32)
        x += tl.load(biases_ptr + entry, mask=there, other=0.0)
        count = tl.load(counts_ptr + entry, mask=there, other=0.0)
        flag = tl.load(flags_ptr + entry, mask=there, other=0)
        scaled = tl.where(x > 0, tl.div_rn(x, repetition + count * 0.0), x * repetition)
        # A product of two float32 is exact in float64: rounding it here keeps it out of a fused multiply-add.
        often = (frequency.to(tl.float64) * count.to(tl.float64)).to(tl.float32)
        lowered = scaled - often - tl.where(count > 0, presence, 0.0)
        x = tl.where((flag & PENALIZED) != 0, lowered, x)
        x = tl.where((flag & BANNED) != 0, float("-inf"), x)
        if bits_ptr is not None:
            line = tl.load(masked_ptr + row)
            at = line.to(tl.int64) * words + token // 32
            word = tl.load(bits_ptr + at, mask=entry < tl.where(line >= 0, end, 0), other=-1)
            x = tl.where(((word >> (token % 32)) & 1) == 1, x, float("-inf"))
        tl.store(out_ptr + row * size + token, x, mask=there)


@dataclass(frozen=True, slots=True)
class Edits:
    """The rules of a step's rows, as ``optpipe.targets.protocol.Edits`` has them, where the kernels run."""

    starts: torch.Tensor
    tokens: torch.Tensor
    biases: torch.Tensor
    counts: torch.Tensor
    flags: torch.Tensor
    penalties: torch.Tensor
    masked: torch.Tensor
    masks: torch.Tensor


def launches(logits: torch.Tensor, rules: Edits, out: torch.Tensor) -> tuple[Launch, ...]:
    """The launches: logits [R, V] with contiguous rows, out [R, V] float32."""
    rows, size = logits.shape
    bits, masked, words = (
        (rules.masks, rules.masked, rules.masks.stride(0)) if len(rules.masks) else (None, None, 0)
    )
    suffix = "" if bits is None else " with a mask"
    copy = Launch(
        mask_kernel, (rows, triton.cdiv(size, BLOCK), 1),
        (logits, bits, masked, out, size, logits.stride(0), words), {"BLOCK": BLOCK}, num_stages=1,
        name="mask_kernel" + suffix,
    )  # fmt: skip
    edit = Launch(
        edit_kernel, (rows, 1, 1),
        (
            logits, rules.starts, rules.tokens, rules.biases, rules.counts, rules.flags, rules.penalties,
            bits, masked, out, size, logits.stride(0), words,
        ),
        {"ENTRIES": ENTRIES}, num_stages=1, name="edit_kernel" + suffix,
    )  # fmt: skip
    return (copy, edit) if rules.tokens.shape[0] else (copy,)


def edited(logits: torch.Tensor, rules: Edits) -> torch.Tensor:
    """The rows as they are sampled from: [R, V] float32.

    Args:
        logits: [R, V].
        rules: of R rows.
    """
    out = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
    if out.numel():
        for launch in launches(logits, rules, out):
            launch.run()
    return out


def shipped(key: str) -> Iterator[Launch]:
    """A Llama's vocabulary with a grammar, and without."""

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    ints = functools.partial(empty, dtype=torch.int32)
    logits = empty(64, 128256)
    for masks in (ints(64, 4008), ints(0, 0)):
        rules = Edits(ints(65), ints(9), empty(9), empty(9), ints(9), empty(64, 3), ints(64), masks)
        yield from launches(logits, rules, empty(64, 128256))


def expects(launch: Launch, key: str) -> tuple[str, ...]:
    """16 bytes a load of logits."""
    return ("ld.global.v4.b32",) if launch.kernel is mask_kernel else ()
