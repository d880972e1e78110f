"""Log-probabilities of chosen tokens and of the likeliest ones, without a sort.

    logprob(token) = logit − (peak + ln Σ exp(logit − peak))

Sums and differences are float64, as in the CPU's sampler. A row is one program's; the n likeliest come out
of a threshold (order.py) and are ranked among themselves. Bytes moved: 4 V a pass, out of the second-level
cache; two passes, and up to 18 more where the likeliest are asked for.
Equals: ``optpipe_runtime.sampling.logprobs``.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from .launch import Launch
from .order import gather_set, largest, likelier, order_key, peak_of, row_block

BLOCK, WARPS = 8192, 16
TOP = 32  # the most likeliest tokens of a row


@triton.jit(do_not_specialize=["top"])
def logprobs_kernel(
    logits_ptr, tokens_ptr, chosen_ptr, norms_ptr, values_ptr, ids_ptr, size, stride, top,
    BLOCK: tl.constexpr, TOP: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    logits = logits_ptr + row * stride
    peak, _first, _broken = peak_of(logits, size, BLOCK)
    total = peak.to(tl.float64) * 0.0  # NaN for a row that has no probabilities
    for start in range(0, size, BLOCK):
        _at, x = row_block(logits, start, size, BLOCK)
        total += tl.sum(tl.exp(x - peak).to(tl.float64))
    norm = peak.to(tl.float64) + tl.log(total)
    token = tl.maximum(tl.load(tokens_ptr + row), 0)  # a row that gave no token has one all the same
    value = tl.load(logits + token).to(tl.float64)
    tl.store(chosen_ptr + row, value - norm)
    tl.store(norms_ptr + row, norm)
    if (top > 0) & (norm == norm):
        bound, cut = largest(logits, size, top, peak, BLOCK)
        gather_set(logits, size, bound, cut, values_ptr + row * TOP, ids_ptr + row * TOP, TOP, BLOCK)


@triton.jit(do_not_specialize=["top"])
def ranked_kernel(norms_ptr, values_ptr, ids_ptr, out_ptr, out_ids_ptr, top, TOP: tl.constexpr):
    """Put the gathered tokens of a row in order: each counts those that are likelier."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, TOP)
    x = tl.load(values_ptr + row * TOP + at)
    ids = tl.load(ids_ptr + row * TOP + at)
    key = order_key(x)
    before = likelier(key[None, :], ids[None, :], key[:, None], ids[:, None]) & (ids[None, :] >= 0)
    rank = tl.sum(before.to(tl.int32), axis=1)
    keep = (ids >= 0) & (rank < top)
    norm = tl.load(norms_ptr + row)
    tl.store(out_ptr + row * top + rank, x.to(tl.float64) - norm, mask=keep)
    tl.store(out_ids_ptr + row * top + rank, ids.to(tl.int64), mask=keep)


def launches(
    logits: torch.Tensor,
    tokens: torch.Tensor,
    chosen: torch.Tensor,
    likeliest: torch.Tensor,
    likeliest_ids: torch.Tensor,
) -> tuple[Launch, ...]:
    """The launches: logits [R, V] with contiguous rows, tokens [R], chosen [R], likeliest and ids [R, n].

    ``likeliest_ids`` comes filled with -1 and ``likeliest`` with -inf: a row may have fewer over -inf.
    """
    rows, size = logits.shape
    top = likeliest.shape[1]
    values = torch.empty((rows, TOP), dtype=torch.float32, device=logits.device)
    ids = torch.full((rows, TOP), -1, dtype=torch.int32, device=logits.device)
    norms = torch.empty(rows, dtype=torch.float64, device=logits.device)
    block = min(BLOCK, triton.next_power_of_2(size))
    first = Launch(
        logprobs_kernel, (rows, 1, 1),
        (logits, tokens, chosen, norms, values, ids, size, logits.stride(0), top),
        {"BLOCK": block, "TOP": TOP}, num_warps=WARPS, num_stages=1,
    )  # fmt: skip
    second = Launch(
        ranked_kernel, (rows, 1, 1), (norms, values, ids, likeliest, likeliest_ids, top), {"TOP": TOP},
        num_warps=1, num_stages=1,
    )  # fmt: skip
    return (first, second) if top else (first,)


def logprobs(
    logits: torch.Tensor, tokens: torch.Tensor, top: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probabilities as the model gave them.

    Args:
        logits: [R, V].
        tokens: [R] int64, each below V; the first is taken for a negative one.
        top: how many of the likeliest to report, at most 32.

    Returns:
        [R] float64 of the tokens; [R, top] float64 and int64 of the likeliest, likeliest first, lower ids
        first among equals, -inf and -1 where a row has no more. NaN for a row with NaN or +inf, or with
        nothing over -inf.
    """
    assert top <= TOP, f"{top = } is more than {TOP}"
    rows, device = logits.shape[0], logits.device
    top = min(top, logits.shape[1])
    chosen = torch.empty(rows, dtype=torch.float64, device=device)
    likeliest = torch.full((rows, top), -torch.inf, dtype=torch.float64, device=device)
    ids = torch.full((rows, top), -1, dtype=torch.int64, device=device)
    if rows:
        for launch in launches(logits, tokens, chosen, likeliest, ids):
            launch.run()
    return chosen, likeliest, ids


def shipped(key: str) -> Iterator[Launch]:
    """A Llama's vocabulary and the field's 20 likeliest."""
    logits = torch.empty(64, 128256, device="meta")
    tokens = torch.empty(64, device="meta", dtype=torch.int64)
    chosen, likeliest = (
        torch.empty(shape, device="meta", dtype=torch.float64) for shape in ((64,), (64, 20))
    )
    yield from launches(
        logits, tokens, chosen, likeliest, torch.empty(64, 20, device="meta", dtype=torch.int64)
    )


def expects(launch: Launch, key: str) -> tuple[str, ...]:
    """16 bytes a load of logits."""
    return ("ld.global.v4.b32",) if launch.kernel is logprobs_kernel else ()
