"""A router's choice: the S experts of each token and their weights, out of its logits, in one launch.

    ids      the S largest logits, largest first, the lowest id of equals first
    weights  softmax over all logits, or over the chosen ones

The second is what softmax, top-k and a division by the sum of what was chosen come to (Mixtral, Qwen3), and
what top-k before softmax is (gpt-oss): four launches of torch's or two.
Shapes: logits [T, E] of any row stride, ids [T, S] int64, weights [T, S] float32. Bytes moved: 2 E + 12 S.
Equals: ``topk(softmax(logits))`` and its variants.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from optpipe.errors import KernelError

from .launch import Launch

TILE = 1024  # logits a program: 8 a thread of 4 warps


@triton.jit(do_not_specialize=["tokens"])
def router_kernel(
    logits_ptr, ids_ptr, weights_ptr, tokens, experts, slots, stride,
    ROWS: tl.constexpr, EXPERTS: tl.constexpr, SLOTS: tl.constexpr, CHOSEN: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    expert = tl.arange(0, EXPERTS)
    inside = (token < tokens)[:, None] & (expert < experts)[None, :]
    at = token.to(tl.int64)[:, None] * stride + expert[None, :]
    logits = tl.load(logits_ptr + at, mask=inside, other=float("-inf")).to(tl.float32)
    peak = tl.max(logits, axis=1)
    total = tl.sum(tl.exp(logits - peak[:, None]), axis=1)
    free = inside
    slot = tl.arange(0, SLOTS)
    ids = tl.zeros((ROWS, SLOTS), tl.int32)
    weights = tl.zeros((ROWS, SLOTS), tl.float32)
    for turn in range(slots):
        best = tl.max(tl.where(free, logits, float("-inf")), axis=1)
        equal = free & (logits == best[:, None])
        first = tl.min(tl.where(equal, expert[None, :], EXPERTS), axis=1)
        ids = tl.where(slot[None, :] == turn, first[:, None], ids)
        weights = tl.where(slot[None, :] == turn, tl.exp(best - peak)[:, None], weights)
        free = free & (expert[None, :] != first[:, None])
    if CHOSEN:
        total = tl.sum(weights, axis=1)
    weights = weights / total[:, None]
    at = token.to(tl.int64)[:, None] * slots + slot[None, :]
    inside = (token < tokens)[:, None] & (slot < slots)[None, :]
    tl.store(ids_ptr + at, ids.to(tl.int64), mask=inside)
    tl.store(weights_ptr + at, weights, mask=inside)


def launches(
    logits: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, *, over_chosen: bool
) -> tuple[Launch, ...]:
    """The one launch: logits [T, E] with contiguous rows, ids and weights [T, S] contiguous."""
    (tokens, experts), slots = logits.shape, ids.shape[1]
    block = triton.next_power_of_2(experts)
    constants = {
        "ROWS": max(1, min(TILE // block, 16)),
        "EXPERTS": block,
        "SLOTS": triton.next_power_of_2(slots),
        "CHOSEN": over_chosen,
    }
    args = (logits, ids, weights, tokens, experts, slots, logits.stride(0))
    grid = (triton.cdiv(tokens, constants["ROWS"]), 1, 1)
    return (Launch(router_kernel, grid, args, constants, num_stages=1),)


def choose_experts(
    logits: torch.Tensor, slots: int, *, over_chosen: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The experts of each token.

    Args:
        logits: [T, E].
        slots: S.
        over_chosen: the softmax is over the chosen logits, not over all.

    Returns:
        ids [T, S] int64 and weights [T, S] float32.

    Raises:
        KernelError: there are fewer experts than slots.
    """
    if not 0 < slots <= logits.shape[1]:
        raise KernelError(f"a router of {logits.shape[1]} experts cannot choose {slots}")
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    ids = torch.empty((logits.shape[0], slots), dtype=torch.int64, device=logits.device)
    weights = torch.empty(ids.shape, dtype=torch.float32, device=logits.device)
    if logits.shape[0]:
        for launch in launches(logits, ids, weights, over_chosen=over_chosen):
            launch.run()
    return ids, weights


def shipped(key: str) -> Iterator[Launch]:
    """Mixtral's, Qwen2-MoE's and Qwen3-MoE's routers."""
    for experts, slots, over_chosen in ((8, 2, True), (60, 4, False), (128, 8, True)):
        logits = torch.empty(64, experts, device="meta", dtype=torch.bfloat16)
        ids = torch.empty(64, slots, device="meta", dtype=torch.int64)
        weights = torch.empty(64, slots, device="meta")
        yield from launches(logits, ids, weights, over_chosen=over_chosen)
