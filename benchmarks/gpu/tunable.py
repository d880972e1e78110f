"""What autotune varies: a kernel's space of tiles, and its call on an 8B model's sizes for a table's row.

What would move bits is left alone: the blocks in which k is walked, the span of keys, and how rows are spread
over warps. So batch invariance stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from types import ModuleType
from typing import Any

import torch

from optpipe.dialect.moe import Gating
from optpipe_kernels.triton import attention_work, dense_linear, experts, greedy_head, quant_linear, row_wise
from optpipe_kernels.triton.attention_work import Shape, attention_tiles, plan_work
from optpipe_kernels.triton.expert_weights import Dense, Packed, pack
from optpipe_kernels.triton.packing import repack
from optpipe_kernels.triton.paged_attention import paged_attention

from .cases import Place

Space = dict[str, tuple[int, ...]]
Call = Callable[[], torch.Tensor]
Table = dict[str, Any]
"""A row of a tile table, as its file has it."""

ROWS = (16, 32, 64, 128, 1024)
PRODUCTS: Space = {"BLOCK_N": (64, 128), "num_warps": (4, 8), "num_stages": (3, 4, 5)}


@dataclass(frozen=True)
class Kernel:
    """One tile table.

    Attributes:
        module: that asks for it.
        space: what is varied around each row.
        call: makes a row's work, on a device or on ``meta``; None where the row is for sizes not tuned here.
    """

    module: ModuleType
    space: Space
    call: Callable[[Table, Place], Call | None]


def candidates(row: Table, space: Space) -> Iterator[Table]:
    """Rows around a row of the table; the row itself is none of them."""
    for values in product(*space.values()):
        made = {**row, "constants": dict(row["constants"])}
        for name, value in zip(space, values, strict=True):
            into = made["constants"] if name in made["constants"] else made
            if name in into:
                into[name] = value
        if made != row and _keeps_bits(made):
            yield made


def _keeps_bits(row: Table) -> bool:
    """Whether each warp has 16 rows of weights or more: then all tiles multiply by the same instructions."""
    sizes = row["constants"]
    rows = sizes.get("BLOCK_V", sizes.get("BLOCK_N"))
    return "SPAN" in sizes or rows >= 16 * row["num_warps"]


def _count(row: Table) -> int | None:
    """A number of rows that a table's row is for."""
    bound = row["when"].get("rows", [None, None])
    low, high = bound if isinstance(bound, list) else (bound, bound)
    if high is None:  # what the rows before have left
        return ROWS[-1]
    return next((it for it in ROWS if (low or 0) <= it <= high), None)


def _sizes(row: Table, place: Place) -> tuple[int, int, int] | None:
    """M, N and K of a layer; None for the fastest way of one row, which has no tiles, and for 8 bits."""
    count = _count(row)
    other = row["when"].get("invariant", 1) == 0 or row["when"].get("bits", 4) != 4
    if count is None or other or "GEMV" in row["constants"]:
        return None
    return place.size(count, 2), place.size(28672, 128), place.size(4096, 256)


def _packed(n: int, k: int, place: Place) -> Any:
    words = torch.empty(n, k // 8, device=place.device, dtype=torch.int32)
    if not words.is_meta:
        words.random_(-(1 << 31), (1 << 31) - 1)
    scale = torch.rand(n, k // 128, device=place.device) / 64 + 1e-3
    return repack(words, scale.half(), bits=4, group=128, dtype=place.dtype)


def _dense_linear(row: Table, place: Place) -> Call | None:
    sizes = _sizes(row, place)
    if sizes is None:
        return None
    m, n, k = sizes
    x, weight = (torch.randn(it, k, device=place.device, dtype=place.dtype) for it in (m, n))
    return lambda: dense_linear.dense_linear(x, weight)


def _quant_linear(row: Table, place: Place, kind: str = "") -> Call | None:
    sizes = _sizes(row, place)
    if sizes is None:
        return None
    m, n, k = sizes
    x, weight = torch.randn(m, k, device=place.device, dtype=place.dtype), _packed(n, k, place)
    if kind:
        return lambda: quant_linear.quant_gate_up(x, weight, kind=kind)
    return lambda: quant_linear.quant_linear(x, weight)


def _greedy_head(row: Table, place: Place) -> Call | None:
    sizes = _sizes(row, place)
    if sizes is None:
        return None
    m, _, k = sizes
    n = place.size(128256, 128)
    make: dict[str, Any] = {"device": place.device, "dtype": place.dtype}
    x = torch.randn(m, k, **make)
    head = _packed(n, k, place) if row["when"]["quantized"] else torch.randn(n, k, **make)
    return lambda: greedy_head.greedy_head(x, head)


def _row_wise(row: Table, place: Place) -> Call | None:
    sizes = _sizes(row, place)
    if sizes is None:
        return None
    m, n, k = sizes
    kind = torch.int8 if place.dry else torch.float8_e4m3fn
    a, b = (torch.rand(it, k, device=place.device).mul(100).to(kind) for it in (m, n))
    scales = [torch.rand(it, device=place.device) for it in (m, n)]
    return lambda: row_wise.row_wise_linear(a, scales[0], b, scales[1], dtype=place.dtype)


def _experts(row: Table, place: Place, *, packed: bool) -> Call | None:
    """A Mixtral's, with so many tokens that an expert has a row's number of them."""
    count = _count(row)
    if count is None:
        return None
    number, slots = place.size(8, 2), 2
    width, inner = place.size(4096, 128), place.size(14336 if not packed else 7168, 128)
    tokens = (min(count, 64) if place.dry else count) * number // slots
    make: dict[str, Any] = {"device": place.device, "dtype": place.dtype}
    x, weights = torch.randn(tokens, width, **make), torch.rand(tokens, slots, **make)
    ids = torch.rand(tokens, number, device=place.device).topk(slots).indices
    sizes = (2 * inner, width), (width, inner)
    first, second = (_experts_of(number, *it, place, packed=packed) for it in sizes)
    return lambda: experts.routed(x, ids, weights, first, second, Gating("silu"))


def _experts_of(number: int, rows: int, columns: int, place: Place, *, packed: bool) -> Dense | Packed:
    if not packed:
        drawn = torch.randn(number, rows, columns, device=place.device, dtype=place.dtype)
        return Dense(drawn.mul_(columns**-0.5))
    words = torch.empty(number, rows, columns // 8, device=place.device, dtype=torch.int32)
    if not words.is_meta:
        words.random_(-(1 << 31), (1 << 31) - 1)
    scale = torch.full((number, rows, columns // 128), 0.2 / columns**0.5, device=place.device)
    return pack(words, scale, None, None, bits=4, group=128, dtype=place.dtype)


def _attention(row: Table, place: Place, *, decode: bool) -> Call | None:
    """A Llama's layer, or a Gemma's of 256 channels; decode of 16 sequences, or one prompt of 4096 tokens."""
    when = row["when"]
    invariant, wide = bool(when["invariant"]), when.get("head_dim", 128) != 128
    heads, kv_heads, width = (8, 4, 256) if wide else (32, 8, 128)
    heads, kv_heads, width = place.size(heads, 2), place.size(kv_heads, 1), place.size(width, 32)
    sequences = place.size(16, 2) if decode else 1
    length = place.size(4096, 40)
    tokens, pages = (1 if decode else length), -(-length // 16)
    kind = torch.int8 if when.get("kv_bytes") == 1 else place.dtype
    make: dict[str, Any] = {"device": place.device}
    q = torch.randn(sequences * tokens, heads, width, **make, dtype=place.dtype)
    shape = (sequences * pages, 16, kv_heads, width)
    keys, values = (torch.randn(shape, **make).mul_(8 if kind is torch.int8 else 1).to(kind) for _ in "kv")
    scales = torch.rand(shape[:3], **make) if kind is torch.int8 else None
    starts, contexts = [tokens * b for b in range(sequences + 1)], [length] * sequences
    first, used = (torch.tensor(it, dtype=torch.int32, **make) for it in (starts, contexts))
    tables = torch.arange(sequences * pages, dtype=torch.int32, **make).view(sequences, pages)
    sizes = Shape(heads, kv_heads, width, width, keys.element_size())

    def call() -> torch.Tensor:
        tiles = attention_tiles(sizes, place_key(place), batch_invariant=invariant)
        return paged_attention(
            q, keys, values, first, used, tables, scale=width**-0.5, k_scales=scales, v_scales=scales,
            work=work_of(tiles), batch_invariant=invariant,
        )  # fmt: skip

    made: dict[Any, Any] = {}

    def work_of(tiles: Any) -> Any:
        cut = tiles.span, tiles.decode_tokens, tiles.prefill_tokens
        if cut not in made:
            made[cut] = plan_work(starts, contexts, sizes, tiles).to(place.device)
        return made[cut]

    return call


def place_key(place: Place) -> str:
    """The tile table's key of where a case runs."""
    from optpipe_kernels.triton.tiles import device_key

    return device_key(place.device)


STAGES: Space = {"num_stages": (2, 3, 4, 5)}
KERNELS = {
    "dense_linear": Kernel(dense_linear, {**PRODUCTS, "num_stages": (3, 4, 5, 6)}, _dense_linear),
    "quant_linear": Kernel(quant_linear, PRODUCTS, _quant_linear),
    "quant_gate_up": Kernel(quant_linear, PRODUCTS, lambda row, place: _quant_linear(row, place, "silu")),
    "paged_decode": Kernel(
        attention_work, STAGES, lambda row, place: _attention(row, place, decode=True)
    ),
    "paged_prefill": Kernel(
        attention_work, STAGES, lambda row, place: _attention(row, place, decode=False)
    ),
    "greedy_head": Kernel(
        greedy_head, {"BLOCK_V": (64, 128), "num_warps": (4, 8), "num_stages": (3, 4, 5)}, _greedy_head
    ),
    "row_wise": Kernel(row_wise, PRODUCTS, _row_wise),
    "experts": Kernel(experts, PRODUCTS, lambda row, place: _experts(row, place, packed=False)),
    "experts_gated": Kernel(experts, PRODUCTS, lambda row, place: _experts(row, place, packed=False)),
    "quant_experts": Kernel(experts, PRODUCTS, lambda row, place: _experts(row, place, packed=True)),
    "quant_experts_gated": Kernel(experts, PRODUCTS, lambda row, place: _experts(row, place, packed=True)),
}  # fmt: skip
"""By table, in the order in which they are tuned: what a Llama's step spends most of its time in first."""
