"""The most likely token of each row, straight from the LM head: logits never reach memory.

    token[r] = argmax_v (W [V, K] · xᵀ [K, R] + bias)[v, r]        the lowest id of several, as numpy has it

A program has the logits of BLOCK_V tokens and BLOCK_R rows in registers and writes the best of them; a second
kernel takes the best of a row's programs. W is dense, or quantized as ``packing`` lays it out; the sums are
those of ``dense_linear`` and ``quant_tile``, run by run and bit for bit, so that the token is the argmax of
the float32 logits which those write. What comes after the head and grows with the logit (softcap, a positive
factor) moves no argmax and is left out. NaN is taken for the largest. Batch invariant always.

Bytes moved: the head once for every BLOCK_R rows, 2 R K, and 8 R V / BLOCK_V.
Equals: ``(x · Wᵀ + bias).argmax(-1)``.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from optpipe.errors import KernelError

from .launch import Launch
from .packing import BLOCK_K, QuantWeight, repack
from .quant_codes import weights
from .quant_tile import finish, inputs, splits
from .tiles import Tile, device_key, tile


@triton.jit
def best_of(logits, token, V):
    """The largest of logits [BLOCK_V, BLOCK_R] along the tokens, and the lowest id that has it."""
    logits = tl.where(logits != logits, float("inf"), logits)
    logits = tl.where((token < V)[:, None], logits, float("-inf"))
    best = tl.max(logits, axis=0)
    first = tl.min(tl.where(logits == best[None, :], token[:, None], 0x7FFFFFFF), axis=0)
    return best, first


@triton.jit(do_not_specialize=["R"])
def dense_kernel(
    x_ptr, head_ptr, bias_ptr, best_ptr, first_ptr, R, V, K, x_stride, head_stride, per_run,
    SPLITS: tl.constexpr, EVEN: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_V: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    token = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    k = tl.arange(0, BLOCK_K)
    x_at = x_ptr + row.to(tl.int64)[:, None] * x_stride + k[None, :]
    head_at = head_ptr + token.to(tl.int64)[:, None] * head_stride + k[None, :]
    row_inside, token_inside = (row < R)[:, None], (token < V)[:, None]
    total = tl.zeros((BLOCK_V, BLOCK_R), dtype=tl.float32)
    for run in tl.static_range(SPLITS):
        acc = tl.zeros((BLOCK_V, BLOCK_R), dtype=tl.float32)
        for block in range(run * per_run, min((run + 1) * per_run, tl.cdiv(K, BLOCK_K))):
            start = block * BLOCK_K
            if EVEN:
                x = tl.load(x_at + start, mask=row_inside, other=0.0)
                head = tl.load(head_at + start, mask=token_inside, other=0.0)
            else:
                inside = (start + k < K)[None, :]
                x = tl.load(x_at + start, mask=row_inside & inside, other=0.0)
                head = tl.load(head_at + start, mask=token_inside & inside, other=0.0)
            if WIDE:
                x, head = x.to(tl.float32), head.to(tl.float32)
            acc = tl.dot(head, x.T, acc, input_precision="ieee")
        total += acc
    if bias_ptr is not None:
        total += tl.load(bias_ptr + token, mask=token < V, other=0.0).to(tl.float32)[:, None]
    best, first = best_of(total, token, V)
    at = tl.program_id(1).to(tl.int64) * R + row
    tl.store(best_ptr + at, best, mask=row < R)
    tl.store(first_ptr + at, first, mask=row < R)


@triton.jit(do_not_specialize=["R"])
def quant_kernel(
    x_ptr, codes_ptr, grid_ptr, scale_ptr, bias_ptr, best_ptr, first_ptr, R, V, K, x_stride, per_run,
    SPLITS: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, HAS_MINIMUM: tl.constexpr,
    EVEN: tl.constexpr, BF16: tl.constexpr, INTERPRETED: tl.constexpr,
    BLOCK_V: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    token = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    total = tl.zeros((BLOCK_V, BLOCK_R), dtype=tl.float32)
    for run in tl.static_range(SPLITS):
        acc = tl.zeros((BLOCK_V, BLOCK_R), dtype=tl.float32)
        for at in range(run * per_run, min((run + 1) * per_run, tl.cdiv(K, 128))):
            block = at + 0  # what is assigned is a tensor in the interpreter too
            x = inputs(x_ptr, row, row < R, x_stride, K, block, EVEN, BF16, INTERPRETED)
            head = weights(
                codes_ptr, grid_ptr, token, token < V, V, block, BITS, GROUP, HAS_MINIMUM, BF16, INTERPRETED
            )  # fmt: skip
            acc = tl.dot(head, x.to(head.dtype).T, acc)
        total += acc
    SCALED: tl.constexpr = GROUP == 0 and not HAS_MINIMUM
    logits = finish(total, scale_ptr, bias_ptr, token[:, None], (token < V)[:, None], SCALED)
    best, first = best_of(logits, token, V)
    at = tl.program_id(1).to(tl.int64) * R + row
    tl.store(best_ptr + at, best, mask=row < R)
    tl.store(first_ptr + at, first, mask=row < R)


@triton.jit(do_not_specialize=["R"])
def winner_kernel(best_ptr, first_ptr, tokens_ptr, R, tiles, TILES: tl.constexpr):
    """The best of a row's tiles; of equals the one of the lowest ids."""
    row = tl.program_id(0)
    at = tl.arange(0, TILES)
    best = tl.load(best_ptr + at.to(tl.int64) * R + row, mask=at < tiles, other=float("-inf"))
    first = tl.load(first_ptr + at.to(tl.int64) * R + row, mask=at < tiles, other=0x7FFFFFFF)
    token = tl.min(tl.where(best == tl.max(best), first, 0x7FFFFFFF))
    tl.store(tokens_ptr + row, token.to(tl.int64))


def greedy_head(
    x: torch.Tensor, head: torch.Tensor | QuantWeight, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """The most likely token of each row: [R] int64.

    Args:
        x: [R, K], what enters the head.
        head: [V, K] in x's type with contiguous rows, or a packed one for x's type.
        bias: [V] or None.

    Raises:
        KernelError: head and x disagree.
    """
    width, kind = (head.columns, head.dtype) if isinstance(head, QuantWeight) else (head.shape[1], head.dtype)
    if (x.shape[1], x.dtype) != (width, kind):
        raise KernelError(f"a head of {width} inputs of {kind} got {x.shape[1]} of {x.dtype}")
    x = x if x.stride(1) == 1 else x.contiguous()
    tokens = torch.empty(x.shape[0], dtype=torch.int64, device=x.device)
    if x.shape[0]:
        for launch in launches(x, head, bias, tokens):
            launch.run()
    return tokens


def launches(
    x: torch.Tensor,
    head: torch.Tensor | QuantWeight,
    bias: torch.Tensor | None,
    tokens: torch.Tensor,
    *,
    key: str = "",
) -> tuple[Launch, ...]:
    """The two launches: x [R, K] with contiguous rows, tokens [R] int64."""
    rows = x.shape[0]
    quantized = isinstance(head, QuantWeight)
    size = head.rows if isinstance(head, QuantWeight) else head.shape[0]
    sizes = tile("greedy_head", key or device_key(x.device), quantized=int(quantized), rows=rows)
    tiles = triton.cdiv(size, sizes.constants["BLOCK_V"])
    best = torch.empty((tiles, rows), dtype=torch.float32, device=x.device)
    first = torch.empty((tiles, rows), dtype=torch.int32, device=x.device)
    grid = (triton.cdiv(rows, sizes.constants["BLOCK_R"]), tiles, 1)
    parts = (best, first)
    if isinstance(head, QuantWeight):
        tiled = _quant(x, head, bias, parts, sizes, grid)
    else:
        tiled = _dense(x, head, bias, parts, sizes, grid)
    winner = Launch(
        winner_kernel, (rows, 1, 1), (best, first, tokens, rows, tiles),
        {"TILES": triton.next_power_of_2(tiles)}, num_stages=1,
    )  # fmt: skip
    return tiled, winner


def _dense(
    x: torch.Tensor,
    head: torch.Tensor,
    bias: torch.Tensor | None,
    parts: tuple[torch.Tensor, torch.Tensor],
    sizes: Tile,
    grid: tuple[int, int, int],
) -> Launch:
    (rows, width), size = x.shape, head.shape[0]
    block, runs = sizes.constants["BLOCK_K"], splits(size, width)
    per_run = triton.cdiv(triton.cdiv(width, block), runs)
    wide = x.dtype is torch.bfloat16 and x.device.type == "cpu"
    constants = {**sizes.constants, "SPLITS": runs, "EVEN": width % block == 0, "WIDE": wide}
    args = (x, head, bias, *parts, rows, size, width, x.stride(0), head.stride(0), per_run)
    title = f"greedy_head dense, {rows} rows"
    return Launch(dense_kernel, grid, args, constants, sizes.num_warps, sizes.num_stages, title)


def _quant(
    x: torch.Tensor,
    head: QuantWeight,
    bias: torch.Tensor | None,
    parts: tuple[torch.Tensor, torch.Tensor],
    sizes: Tile,
    grid: tuple[int, int, int],
) -> Launch:
    rows, width = x.shape
    half, runs = x.dtype is torch.bfloat16, splits(head.rows, width)
    per_run = triton.cdiv(head.blocks, runs)
    constants = {
        **sizes.constants, "SPLITS": runs,
        "BITS": head.bits, "GROUP": head.group, "HAS_MINIMUM": head.has_minimum,
        "EVEN": width % BLOCK_K == 0, "BF16": half, "INTERPRETED": x.device.type == "cpu",
    }  # fmt: skip
    stored = (head.codes, head.grid, head.scale, bias)
    args = (x, *stored, *parts, rows, head.rows, width, x.stride(0), per_run)
    title = f"greedy_head w{head.bits}, {rows} rows"
    return Launch(quant_kernel, grid, args, constants, sizes.num_warps, sizes.num_stages, title)


def shipped(key: str) -> Iterator[Launch]:
    """A Llama's head, dense, in 4 and in 8 bits, for a few rows and for many."""
    for rows in (1, 32, 64, 256):
        x = torch.empty(rows, 4096, device="meta", dtype=torch.bfloat16)
        tokens = torch.empty(rows, device="meta", dtype=torch.int64)
        head = torch.empty(128256, 4096, device="meta", dtype=torch.bfloat16)
        yield launches(x, head, None, tokens, key=key)[0]
        for bits, groups in ((4, 32), (8, 1)) if rows < 256 else ():
            packed = torch.empty(128256, 4096 * bits // 32, device="meta", dtype=torch.int32)
            scale = torch.empty(128256, groups, device="meta", dtype=torch.float16)
            group = 4096 // groups if groups > 1 else -1
            stored = repack(packed, scale, bits=bits, group=group, dtype=torch.bfloat16)
            both = launches(x, stored, None, tokens, key=key)
            yield from both if rows == 64 and bits == 4 else both[:1]


def expects(launch: Launch, key: str) -> tuple[str, ...]:
    """PTX that a launch's code has: Hopper's matrix instructions, and copies past the registers."""
    if launch.kernel is winner_kernel:
        return ()
    copies = ("cp.async",)
    return (*copies, "wgmma.mma_async") if key.startswith("sm_90") else copies
