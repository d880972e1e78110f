"""What a request's rules do to its row of logits: bias, penalties, tokens that may not come, a mask.

    1. v = logit + bias
    2. in prompt or output:  v = v / repetition if v > 0 else v · repetition
                             v = v − frequency · count − presence · [count > 0]
    3. v = -inf where the token is banned or its bit of the mask is 0

One launch copies rows as float32 and masks them; another edits the few tokens that a rule names, each
from the model's own logit, so that every entry stands alone. Rows stay as they are; the result is new.
Bytes moved: 8 V + V/8 a row, 20 an entry.
Source: equals ``optpipe_runtime.sampling.state.RowState.edited``, which gives the order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import triton
import triton.language as tl

from .launch import Launch

BLOCK = 4096  # logits a program of the copy: 16 bytes a load, 8 loads a thread
ENTRIES = 256  # entries that a program treats at once
PENALIZED, BANNED = 1, 2


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
        x = tl.where((flag & 1) != 0, lowered, x)
        x = tl.where((flag & 2) != 0, float("-inf"), x)
        if bits_ptr is not None:
            line = tl.load(masked_ptr + row)
            at = line.to(tl.int64) * words + token // 32
            word = tl.load(bits_ptr + at, mask=entry < tl.where(line >= 0, end, 0), other=-1)
            x = tl.where(((word >> (token % 32)) & 1) == 1, x, float("-inf"))
        tl.store(out_ptr + row * size + token, x, mask=there)


@dataclass(frozen=True, slots=True)
class RowEdits:
    """The rules of one row.

    Attributes:
        bias: token → number added.
        counts: token → how often it is in the output; 0 for tokens of the prompt alone, which count for
            the repetition penalty only.
        banned: tokens that may not come.
        repetition, presence, frequency: the penalties.
        mask: row of the step's bits, or None.
    """

    bias: Mapping[int, float] = field(default_factory=dict)
    counts: Mapping[int, int] = field(default_factory=dict)
    banned: Sequence[int] = ()
    repetition: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0
    mask: int | None = None


@dataclass(frozen=True, slots=True)
class Edits:
    """The rules of a step's rows as kernels read them; E entries in the order of rows, one a token of a row.

    Attributes:
        starts: [R + 1] int32, where each row's entries begin.
        ids: [E] int32.
        biases, counts: [E] float32.
        flags: [E] int32, PENALIZED and BANNED.
        penalties: [R, 3] float32: repetition, presence, frequency.
        masked: [R] int32, the row of the mask's bits, -1 for none.
    """

    starts: torch.Tensor
    ids: torch.Tensor
    biases: torch.Tensor
    counts: torch.Tensor
    flags: torch.Tensor
    penalties: torch.Tensor
    masked: torch.Tensor


def edits(rows: Sequence[RowEdits], device: torch.device | str = "cpu") -> Edits:
    """The rules of a step's rows."""
    starts, ids, biases, counts, flags = [0], [], [], [], []
    for row in rows:
        banned = set(row.banned)
        for token in sorted(banned.union(row.bias, row.counts)):
            ids.append(token)
            biases.append(row.bias.get(token, 0.0))
            counts.append(float(row.counts.get(token, 0)))
            flags.append(PENALIZED * (token in row.counts) | BANNED * (token in banned))
        starts.append(len(ids))

    def told(values: list[int] | list[float], dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    penalties = [value for row in rows for value in (row.repetition, row.presence, row.frequency)]
    return Edits(
        told(starts, torch.int32),
        told(ids, torch.int32),
        told(biases, torch.float32),
        told(counts, torch.float32),
        told(flags, torch.int32),
        told(penalties, torch.float32).view(-1, 3),
        told([-1 if row.mask is None else row.mask for row in rows], torch.int32),
    )


def launches(
    logits: torch.Tensor, rules: Edits, bits: torch.Tensor | None, out: torch.Tensor
) -> tuple[Launch, ...]:
    """The launches: logits [R, V] with contiguous rows, bits [n, ≥ V/32] int32, out [R, V] float32."""
    rows, size = logits.shape
    masked = None if bits is None else rules.masked
    suffix = "" if bits is None else " with a mask"
    words = 0 if bits is None else bits.stride(0)
    copy = Launch(
        mask_kernel, (rows, triton.cdiv(size, BLOCK), 1),
        (logits, bits, masked, out, size, logits.stride(0), words), {"BLOCK": BLOCK}, num_stages=1,
        name="mask_kernel" + suffix,
    )  # fmt: skip
    edit = Launch(
        edit_kernel, (rows, 1, 1),
        (
            logits, rules.starts, rules.ids, rules.biases, rules.counts, rules.flags, rules.penalties,
            bits, masked, out, size, logits.stride(0), words,
        ),
        {"ENTRIES": ENTRIES}, num_stages=1, name="edit_kernel" + suffix,
    )  # fmt: skip
    return (copy, edit) if rules.ids.shape[0] else (copy,)


def edited(logits: torch.Tensor, rules: Edits, bits: torch.Tensor | None = None) -> torch.Tensor:
    """The rows as they are sampled from: [R, V] float32.

    Args:
        logits: [R, V].
        rules: of R rows.
        bits: [n, at least V/32] int32 with contiguous rows: token t may come if bit t % 32 of word t // 32 is
            1; ``Edits.masked`` says which row of it a row of logits takes.
    """
    out = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
    if out.numel():
        for launch in launches(logits, rules, bits, out):
            launch.run()
    return out


def shipped(key: str) -> Iterator[Launch]:
    """A Llama's vocabulary with a grammar, and without."""
    meta = torch.device("meta")
    logits, out = (
        torch.empty(64, 128256, device=meta, dtype=torch.bfloat16),
        torch.empty(64, 128256, device=meta),
    )
    rules = edits([RowEdits(counts={1: 1})] * 64, meta)
    for bits in (torch.empty(64, 4008, device=meta, dtype=torch.int32), None):
        yield from launches(logits, rules, bits, out)


def expects(launch: Launch, key: str) -> tuple[str, ...]:
    """16 bytes a load of logits."""
    return ("ld.global.v4.b32",) if launch.kernel is mask_kernel else ()
