"""Steps of paged attention for tests: sequences over shuffled pages, and tiles small enough to cross."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from optpipe.dialect.paged_attention import paged_attention as body
from optpipe_kernels.triton.attention_operands import Operands
from optpipe_kernels.triton.attention_work import Tiles, plan_work
from optpipe_kernels.triton.paged_attention import launches
from optpipe_kernels.triton.tiles import Tile

SPAN = 32  # keys; two tiles


def small_tiles(group: int, rows: int = 16) -> Tiles:
    """16 keys a tile, 2 tiles a span; 16 rows a decode program, ``rows`` a prefill program."""
    sizes = {"BLOCK_N": 16, "SPAN": SPAN, "VALUES": 128}
    decode, prefill = Tile({"BLOCK_M": 16, **sizes}, 4, 2), Tile({"BLOCK_M": rows, **sizes}, 4, 2)
    return Tiles(decode, prefill, group, native=torch.cuda.is_available())


@dataclass(frozen=True)
class Layer:
    """Sizes of one layer: query and KV heads, widths of keys and values, tokens a page."""

    heads: int = 4
    kv_heads: int = 2
    width: int = 16
    values: int = 16
    page: int = 16


def step(layer, tokens, contexts, *, device="cpu", dtype=torch.float32, **options):
    """Operands of a step: ``tokens[b]`` new tokens of a sequence that has ``contexts[b]`` with them."""
    needed = [-(-context // layer.page) for context in contexts]
    pages = sum(needed) + 2
    order = torch.randperm(pages).split([*needed, 2])
    tables = torch.full(
        (len(contexts), max(needed) + 1), 10**6, dtype=torch.int32
    )  # past the end: never read
    for row, own in zip(tables, order, strict=False):
        row[: len(own)] = own.int()
    place = {"device": device, "dtype": dtype}
    start = torch.tensor([0, *tokens]).cumsum(0).int()
    caches = [
        torch.randn(pages, layer.page, layer.kv_heads, width, **place)
        for width in (layer.width, layer.values)
    ]
    for b, context in enumerate(contexts):  # slots past the end hold what must not be seen
        for cache in caches:
            if context % layer.page:
                cache[order[b][-1].item(), context % layer.page :] = torch.nan
    for name in ("sinks", "alibi"):
        if options.get(name):
            options[name] = torch.rand(layer.heads, **place)
    return Operands(
        torch.randn(int(start[-1]), layer.heads, layer.width, **place), *caches,
        start.to(device), torch.tensor(contexts, dtype=torch.int32, device=device), tables.to(device),
        **{"scale": 0.25, **options},
    )  # fmt: skip


def expected(operands):
    """The dialect's body on the same operands, caches of 8 bits read back as float32 first."""
    caches = [operands.k_cache, operands.v_cache]
    if operands.k_scales is not None:
        scales = operands.k_scales, operands.v_scales
        caches = [held.float() * scale[..., None] for held, scale in zip(caches, scales, strict=True)]
    return body(
        operands.q, *caches, operands.query_start, operands.context_lens, operands.block_tables,
        operands.sinks, operands.alibi, scale=operands.scale, window=operands.window,
        chunk=operands.chunk, softcap=operands.softcap,
    )  # fmt: skip


def run(operands, *, rows=16, invariant=True, programs=5):
    """The kernels on the operands, with small tiles; outputs are poisoned first."""
    shape = operands.shape
    tiles = small_tiles(shape.group, rows)
    work = plan_work(operands.query_start.tolist(), operands.context_lens.tolist(), shape, tiles)
    out = torch.full((*operands.q.shape[:2], shape.value_dim), torch.nan).to(operands.q)
    for launch in launches(
        operands, work.to(out.device), out, tiles, batch_invariant=invariant, programs=programs
    ):
        launch.run()
    return out


def tail(operands, tokens):
    """The same sequences in a step that brings only their last tokens: ``tokens[b]`` of sequence b."""
    start, rows = operands.query_start.tolist(), []
    for b, count in enumerate(tokens):
        rows += range(start[b + 1] - count, start[b + 1])
    begin = torch.tensor([0, *tokens]).cumsum(0).int().to(operands.query_start.device)
    return replace(operands, q=operands.q[rows], query_start=begin), rows
