"""``paged_attention``: attention over a block table; one op for prefill, chunk, decode and verification.

The last ``query_start[b+1] − query_start[b]`` tokens of sequence b are the queries of this step, and its
keys and values, theirs included, lie in the blocks of ``block_tables[b]``. The body walks a sequence's
blocks in tiles and keeps a running maximum and sum (Milakov and Gimelshein 2018), so no more than one
tile of keys is ever laid out densely.
"""

from __future__ import annotations

import torch

from .attention import head_groups
from .mask import visible
from .op import accumulator, define

TILE_TOKENS = 256  # keys a tile; a multiple of every usual block size


def _fake(
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
) -> torch.Tensor:
    return q.new_empty((q.shape[0], q.shape[1], v_cache.shape[3]))


@define(
    "paged_attention(Tensor q, Tensor k_cache, Tensor v_cache, Tensor query_start, Tensor context_lens,"
    " Tensor block_tables, Tensor? sinks=None, Tensor? alibi=None, *, float scale, int? window=None,"
    " int? chunk=None, float? softcap=None) -> Tensor",
    fake=_fake,
)
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
) -> torch.Tensor:
    """Causal attention of B packed sequences over their cached keys and values.

    Args:
        q: [T, H, D], the sequences' new tokens back to back.
        k_cache: [P, block, H_kv, D].
        v_cache: [P, block, H_kv, Dv].
        query_start: [B + 1] int32; sequence b owns rows query_start[b] to query_start[b + 1].
        context_lens: [B] int32, tokens of each sequence with this step's.
        block_tables: [B, M] int32, the blocks of each sequence in order; entries past its length are unread.
        sinks, alibi, scale, window, chunk, softcap: as for ``attention``.

    Returns:
        [T, H, Dv], in ``q``'s dtype. Rows outside every sequence are zero.

    Source: Kwon et al. 2023 for the block table; Dao et al. 2022 for the tiling.
    """
    out = q.new_zeros((q.shape[0], q.shape[1], v_cache.shape[3]))
    starts, lengths = query_start.tolist(), context_lens.tolist()
    for b, length in enumerate(lengths):
        begin, end = starts[b], starts[b + 1]
        if end == begin:
            continue
        out[begin:end] = _one_sequence(
            q[begin:end], k_cache, v_cache, block_tables[b], length, sinks, alibi,
            scale=scale, window=window, chunk=chunk, softcap=softcap,
        )  # fmt: skip
    return out


def _one_sequence(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    blocks: torch.Tensor,
    length: int,
    sinks: torch.Tensor | None,
    alibi: torch.Tensor | None,
    *,
    scale: float,
    window: int | None,
    chunk: int | None,
    softcap: float | None,
) -> torch.Tensor:
    wide = accumulator(q)
    block, kv_heads = k_cache.shape[1], k_cache.shape[2]
    groups, rows, heads = head_groups(q, k_cache[0]), q.shape[0], q.shape[1]
    grouped = q.to(wide).reshape(rows, kv_heads, groups, -1)
    query_at = torch.arange(length - rows, length, device=q.device)

    top = torch.full((kv_heads, groups, rows, 1), -torch.inf, dtype=wide, device=q.device)
    total = torch.zeros_like(top)
    if sinks is not None:  # a sink is a score seen before every key, with no value
        top = top.copy_(sinks.to(wide).reshape(kv_heads, groups, 1, 1))
        total = torch.ones_like(top)
    out = torch.zeros((kv_heads, groups, rows, v_cache.shape[3]), dtype=wide, device=q.device)

    tile = max(TILE_TOKENS // block, 1)
    first = _first_block(length - rows, block, window, chunk)
    last = -(-length // block)
    for begin in range(first, last, tile):
        index = blocks[begin : min(begin + tile, last)].long()
        key_at = torch.arange(begin * block, begin * block + len(index) * block, device=q.device)
        keys = k_cache[index].flatten(0, 1).to(wide)
        values = v_cache[index].flatten(0, 1).to(wide)
        score = torch.einsum("nhgd,shd->hgns", grouped, keys) * scale
        if softcap is not None:
            score = softcap * torch.tanh(score / softcap)
        if alibi is not None:
            slope = alibi.to(wide).reshape(kv_heads, groups, 1, 1)
            score = score + slope * (key_at[None, :] - query_at[:, None])
        seen = visible(query_at[:, None], key_at[None, :], window, chunk)
        score = score.masked_fill(~seen, -torch.inf)
        values = values.masked_fill((key_at >= length)[:, None, None], 0)  # unwritten slots may hold anything

        peak = torch.maximum(top, score.amax(-1, keepdim=True))
        safe = peak.masked_fill(peak == -torch.inf, 0)  # a row that has seen nothing yet
        weight = torch.exp(score - safe)
        fade = torch.exp(top - safe)
        total = total * fade + weight.sum(-1, keepdim=True)
        out = out * fade + torch.einsum("hgns,shd->hgnd", weight, values)
        top = peak
    return (out / total).permute(2, 0, 1, 3).reshape(rows, heads, -1).to(q.dtype)


def _first_block(query_at: int, block: int, window: int | None, chunk: int | None) -> int:
    """The first block that the earliest query can see."""
    oldest = 0
    if window is not None:
        oldest = max(oldest, query_at - window + 1)
    if chunk is not None:
        oldest = max(oldest, query_at // chunk * chunk)
    return oldest // block
