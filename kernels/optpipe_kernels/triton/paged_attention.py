"""``paged_attention``: the dialect's op, by the decode kernel and by the prefill kernel.

Which sequence goes to which kernel is the caller's list (``attention_work``), made on the host from the
step's own query starts and context lengths: a launch's shape is static, so that a decode step replays from
a CUDA graph. Without a list one is made here, which waits for the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import torch
import triton

from .attention_operands import Operands
from .attention_work import Tiles, Work, attention_tiles, plan_work
from .kv_cache import KINDS
from .launch import Launch
from .paged_decode import paged_decode_kernel, paged_reduce_kernel
from .paged_prefill import paged_prefill_kernel
from .tiles import Tile, device_key


def paged_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    query_start: torch.Tensor,
    context_lens: torch.Tensor,
    block_tables: torch.Tensor,
    sinks: torch.Tensor | None = None,
    alibi: torch.Tensor | None = None,
    *,
    scale: float,
    window: int | None = None,
    chunk: int | None = None,
    softcap: float | None = None,
    k_scales: torch.Tensor | None = None,
    v_scales: torch.Tensor | None = None,
    work: Work | None = None,
    batch_invariant: bool = True,
    programs: int | None = None,
) -> torch.Tensor:
    """Causal attention of B packed sequences over their cached keys and values.

    Args:
        q: [T, H, D] float16, bfloat16 or float32; rows and heads may lie in a wider tensor.
        k_cache: [P, block, H_kv, D], of any block size; q's dtype, float8 e4m3 or int8.
        v_cache: [P, block, H_kv, Dv], of the same dtype.
        query_start: [B + 1] int32.
        context_lens: [B] int32, with this step's tokens.
        block_tables: [B, M] int32.
        sinks: [H].
        alibi: [H].
        scale: factor on q·k, positive.
        window, chunk, softcap: as for the dialect's ``attention``.
        k_scales, v_scales: [P, block, H_kv] float32, the factor of each token's head; for 8-bit caches only.
        work: the step's lists on q's device, made for this window and chunk by ``plan_work``.
        batch_invariant: a row's bits do not depend on how its sequence was cut into steps.
        programs: decode programs in flight; by default two for each multiprocessor.

    Returns:
        [T, H, Dv], in ``q``'s dtype. Rows outside every sequence are zero.

    Source: Kwon et al. 2023 for the block table; Dao et al. 2022 for the tiling.
    """
    operands = Operands(
        q, k_cache, v_cache, query_start, context_lens, block_tables, sinks, alibi, k_scales, v_scales,
        scale, window, chunk, softcap,
    )  # fmt: skip
    operands.check()
    tiles = attention_tiles(operands.shape, device_key(q.device), batch_invariant=batch_invariant)
    if work is None:
        made = plan_work(query_start.tolist(), context_lens.tolist(), operands.shape, tiles)
        work = made.to(q.device)
    out = _output(operands, work)
    for launch in launches(operands, work, out, tiles, batch_invariant=batch_invariant, programs=programs):
        launch.run()
    return out


def _output(operands: Operands, work: Work) -> torch.Tensor:
    q = operands.q
    shape = (q.shape[0], q.shape[1], operands.v_cache.shape[3])
    # The decode kernel clears rows of no sequence itself.
    return q.new_zeros(shape) if work.most_tokens == 0 and work.tokens < q.shape[0] else q.new_empty(shape)


def launches(
    operands: Operands,
    work: Work,
    out: torch.Tensor,
    tiles: Tiles,
    *,
    batch_invariant: bool = True,
    programs: int | None = None,
) -> Iterator[Launch]:
    """The step's launches: decode and its reduction where sequences are decoded, prefill where some are not.

    Args:
        operands: as for ``paged_attention``.
        work: the lists, on q's device.
        out: [T, H, Dv], contiguous.
        tiles: those that ``work`` was made with.
        batch_invariant: as for ``paged_attention``.
        programs: decode programs in flight.
    """
    if work.most_tokens:
        programs = programs or _programs(out.device)
        yield from _decode(operands, work, out, tiles, programs)
    if len(work.block_sequence):
        yield _prefill(operands, work, out, tiles, spanned=batch_invariant)


def _programs(device: torch.device) -> int:
    if device.type != "cuda":
        return 2 * 132
    return 2 * int(torch.cuda.get_device_properties(device).multi_processor_count)


def _decode(
    operands: Operands, work: Work, out: torch.Tensor, tiles: Tiles, programs: int
) -> Iterator[Launch]:
    shape, heads, items = operands.shape, operands.shape.heads, len(work.item_sequence)
    sequences = len(operands.context_lens)
    partial = work.most_items > 1
    sums = [
        out.new_empty((items, heads, work.most_tokens, width) if partial else (1,), dtype=torch.float32)
        for width in (shape.value_dim, 1, 1)
    ]
    values = _value_block(shape.value_dim, tiles.decode)
    axis = shape.kv_heads * tiles.head_blocks * -(-shape.value_dim // values)
    constants = _constants(operands, tiles.decode) | {
        "PACK": tiles.pack, "NATIVE": tiles.native, "BLOCK_DV": values,
    }  # fmt: skip
    yield Launch(
        paged_decode_kernel,
        (min(programs, items * axis), 1, 1),
        (
            *_caches(operands), out, *sums,
            operands.query_start, operands.context_lens, operands.block_tables,
            work.item_start, work.item_sequence, operands.sinks, operands.alibi,
            out.shape[0], sequences, work.most_tokens, operands.scale, *_strides(operands),
        ),
        constants, tiles.decode.num_warps, tiles.decode.num_stages, name=_title("paged_decode", operands),
    )  # fmt: skip
    if partial:
        yield Launch(
            paged_reduce_kernel,
            (sequences, heads, work.most_tokens),
            (*sums, out, operands.query_start, work.item_start, operands.sinks, work.most_tokens),
            {
                "HEADS": heads, "DV": shape.value_dim, "BLOCK_DV": _block(shape.value_dim),
                "SINKS": operands.sinks is not None, "UNROLL": 8,
            },
            num_warps=1, name=_title("paged_reduce", operands),
        )  # fmt: skip


def _prefill(operands: Operands, work: Work, out: torch.Tensor, tiles: Tiles, *, spanned: bool) -> Launch:
    shape, prefill = operands.shape, tiles.prefill
    values = _value_block(shape.value_dim, prefill)
    heads = shape.kv_heads * tiles.head_blocks
    return Launch(
        paged_prefill_kernel,
        (heads, len(work.block_sequence), -(-shape.value_dim // values)),
        (
            *_caches(operands), out, operands.query_start, operands.context_lens, operands.block_tables,
            work.block_sequence, work.block_token, operands.sinks, operands.alibi,
            operands.scale, *_strides(operands),
        ),
        _constants(operands, prefill)
        | {"PACK": tiles.pack, "NATIVE": tiles.native, "BLOCK_DV": values, "SPANNED": spanned},
        prefill.num_warps, prefill.num_stages, name=_title("paged_prefill", operands),
    )  # fmt: skip


def _caches(operands: Operands) -> tuple[torch.Tensor | None, ...]:
    """q, caches (float8 as bytes) and their scales."""
    caches = [operands.k_cache, operands.v_cache]
    if operands.k_cache.dtype == torch.float8_e4m3fn:
        caches = [cache.view(torch.uint8) for cache in caches]
    return operands.q, *caches, operands.k_scales, operands.v_scales


def _strides(operands: Operands) -> tuple[int, ...]:
    k, v = operands.k_cache, operands.v_cache
    scales = operands.k_scales.stride()[:2] if operands.k_scales is not None else (0, 0)
    rows = *operands.q.stride()[:2], operands.block_tables.stride(0)
    return (*rows, *k.stride()[:3], *v.stride()[:3], *scales)


def _constants(operands: Operands, tile: Tile) -> dict[str, Any]:
    shape = operands.shape
    sizes = {name: size for name, size in tile.constants.items() if name != "VALUES"}
    return {
        **sizes, "KV_HEADS": shape.kv_heads, "GROUP": shape.group, "PAGE": operands.k_cache.shape[1],
        "D": shape.head_dim, "DV": shape.value_dim, "BLOCK_D": _block(shape.head_dim),
        "KIND": operands.kind, "WINDOW": operands.window,
        "CHUNK": operands.chunk, "SOFTCAP": operands.softcap,
        "ALIBI": operands.alibi is not None, "SINKS": operands.sinks is not None,
    }  # fmt: skip


def _value_block(width: int, tile: Tile) -> int:
    """Columns of values a program: all, or equal parts of them, whose programs read the keys from L2."""
    most = tile.constants["VALUES"]
    return most if width > most and width % most == 0 else _block(width)


def _block(width: int) -> int:
    """The tile's width of a head: a power of two that a dot takes."""
    return max(16, int(triton.next_power_of_2(width)))


def _title(kernel: str, operands: Operands) -> str:
    shape = operands.shape
    cache = str(operands.k_cache.dtype).removeprefix("torch.")
    return f"{kernel} {shape.heads}/{shape.kv_heads}x{shape.head_dim} {cache}"


# heads, KV heads, width of a head, what the layer asks for besides, dtype of the cache, batch invariant
SHIPPED: Final[tuple[tuple[int, int, int, dict[str, Any], torch.dtype, bool], ...]] = (
    (32, 8, 128, {}, torch.bfloat16, True),  # Llama 3.1 8B
    (32, 8, 128, {}, torch.bfloat16, False),
    (32, 8, 128, {}, torch.float8_e4m3fn, True),
    (32, 8, 128, {}, torch.int8, True),
    (9, 3, 64, {}, torch.float16, True),  # SmolLM2 135M
    (8, 4, 256, {"window": 4096, "softcap": 50.0}, torch.bfloat16, True),  # Gemma 2
    (64, 8, 64, {"window": 128, "sinks": True}, torch.bfloat16, True),  # gpt-oss 20B
    (8, 4, 256, {"window": 4096, "softcap": 50.0}, torch.bfloat16, False),
    (4, 1, 256, {"window": 512}, torch.int8, True),  # Gemma 3 270M
    (32, 8, 128, {}, torch.float8_e4m3fn, False),
    (4, 1, 256, {"window": 512}, torch.int8, False),
    (28, 4, 128, {}, torch.bfloat16, True),  # Qwen 2.5 7B
    (40, 8, 128, {"chunk": 8192}, torch.bfloat16, True),  # Llama 4 Scout
    (32, 32, 128, {"alibi": True}, torch.float16, True),  # BLOOM 7B
    (32, 32, 96, {"window": 2047}, torch.bfloat16, True),  # Phi-3 mini
)


def shipped(key: str) -> Iterator[Launch]:
    """The launches of real models' layers with a chip's tiles: a step of decoding and one of prompts."""
    for heads, kv_heads, width, extra, dtype, invariant in SHIPPED:
        operands = _meta_operands(heads, kv_heads, width, dtype, **extra)
        tiles = attention_tiles(operands.shape, key, batch_invariant=invariant)
        empty = torch.empty(64, dtype=torch.int32, device="meta")
        work = Work(empty[:9], empty, empty, empty, tokens=64, most_tokens=1, most_items=8)
        yield from launches(operands, work, operands.q, tiles, batch_invariant=invariant)


def expects(launch: Launch, key: str) -> tuple[str, ...]:
    """Tiles of 64 rows go through the newest matrix instructions; keys come in copies of 16 bytes."""
    if launch.kernel is paged_reduce_kernel:
        return ("ld.global.v",)
    newest = {"sm_90": "wgmma.mma_async.sync.aligned.m64n", "sm_100": "tcgen05.mma.cta_group"}
    older = key not in newest or launch.constants["BLOCK_M"] < 64
    return "mma.sync.aligned.m16n8k16" if older else newest[key], "cp.async.cg.shared.global"


def _meta_operands(
    heads: int, kv_heads: int, width: int, dtype: torch.dtype, *,
    sinks: bool = False, alibi: bool = False, **options: Any,
) -> Operands:  # fmt: skip
    """Operands of one layer on ``meta``: 8 sequences, pages of 16 tokens, q within a fused projection."""
    wide = torch.float16 if dtype == torch.float16 else torch.bfloat16
    fused = torch.empty(64, heads + 2 * kv_heads, width, dtype=wide, device="meta")
    cache = torch.empty(1024, 16, kv_heads, width, dtype=dtype, device="meta")
    tables = torch.empty(8, 256, dtype=torch.int32, device="meta")
    scales = torch.empty(cache.shape[:3], device="meta") if dtype in KINDS else None
    sink, slope = (torch.empty(heads, dtype=wide, device="meta") if it else None for it in (sinks, alibi))
    return Operands(
        fused[:, :heads], cache, cache, tables[:, 0], tables[:, 0], tables, sink, slope,
        k_scales=scales, v_scales=scales, scale=width**-0.5, **options,
    )  # fmt: skip
