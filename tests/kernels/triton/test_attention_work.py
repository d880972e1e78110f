from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from optpipe_kernels.triton.attention_work import Shape, attention_tiles, plan_work
from optpipe_kernels.triton.tiles import CAPABILITIES

from .attention_cases import SPAN, small_tiles

SHAPE = Shape(8, 2, 64, 64)  # 4 heads a group: 4 tokens fit the 16 rows of a decode program


def plan(tokens, contexts, shape=SHAPE):
    start = np.concatenate(([0], np.cumsum(tokens))).tolist()
    return plan_work(start, contexts, shape, small_tiles(shape.group))


def test_few_tokens_are_decoded_and_many_are_blocks_of_queries():
    work = plan([1, 4, 5, 0], [10, 10, 10, 0])
    assert work.item_start.tolist() == [0, 1, 2, 2, 2]
    assert work.item_sequence.tolist() == [0, 1]
    assert list(zip(work.block_sequence.tolist(), work.block_token.tolist(), strict=True)) == [(2, 4), (2, 0)]
    assert (work.tokens, work.most_tokens, work.most_items) == (10, 4, 1)


@pytest.mark.parametrize(
    ("context", "spans"), [(1, 1), (SPAN, 1), (SPAN + 1, 2), (2 * SPAN, 2), (2 * SPAN + 1, 3)]
)
def test_a_span_begins_at_a_multiple_of_its_length(context, spans):
    assert plan([1], [context]).most_items == spans


@pytest.mark.parametrize(
    "limits", [{"window": 10}, {"window": SPAN}, {"chunk": 24}, {"window": 50, "chunk": 40}]
)
def test_spans_cover_what_is_seen_and_no_more(limits):
    shape = Shape(8, 2, 64, 64, **limits)
    for context in range(1, 4 * SPAN):
        for tokens in range(1, min(4, context) + 1):
            first = min(shape.first_key(at) for at in range(context - tokens, context))
            spans = plan([tokens], [context], shape).most_items
            assert spans == (context - 1) // SPAN - first // SPAN + 1


def test_blocks_cover_the_new_tokens_with_the_longest_walk_first():
    work = plan([9, 6], [9, 200])
    blocks = list(zip(work.block_sequence.tolist(), work.block_token.tolist(), strict=True))
    assert sorted(blocks) == [(0, 0), (0, 4), (0, 8), (1, 0), (1, 4)]
    walks = [min({0: 0, 1: 194}[b] + token + 4, {0: 9, 1: 200}[b]) for b, token in blocks]
    assert all(first >= second for first, second in pairwise(walks))


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("width", [64, 80, 128, 256])
@pytest.mark.parametrize("kv_bytes", [1, 2])
def test_both_kernels_walk_the_same_tiles_and_spans(capability, width, kv_bytes):
    tiles = attention_tiles(Shape(8, 2, width, width, kv_bytes), f"sm_{capability}")
    decode, prefill = tiles.decode.constants, tiles.prefill.constants
    for name in ("BLOCK_N", "SPAN"):
        assert decode[name] == prefill[name]
    assert decode["SPAN"] % decode["BLOCK_N"] == 0
    # The sum over a tile's keys has one order in both: rows are spread over warps in the same way.
    assert decode["BLOCK_M"] // tiles.decode.num_warps == prefill["BLOCK_M"] // tiles.prefill.num_warps == 16
    assert decode["BLOCK_M"] >= 64
    if capability == 100:  # where the rows of a tile decide how its columns lie in threads
        assert (decode["BLOCK_M"], tiles.decode.num_warps) == (prefill["BLOCK_M"], tiles.prefill.num_warps)


# Rows of the decode tile, of the prefill tile, keys a tile: smaller ones would hide spills.
PINNED = {
    (80, 128): (64, 128, 32), (80, 256): (64, 128, 32),
    (90, 128): (64, 128, 64), (90, 256): (64, 128, 32),
    (100, 128): (128, 128, 32), (100, 256): (128, 128, 32),
}  # fmt: skip


@pytest.mark.parametrize(("capability", "width"), PINNED)
def test_the_tiles_are_these(capability, width):
    tiles = attention_tiles(Shape(8, 2, width, width), f"sm_{capability}")
    decode, prefill = tiles.decode.constants, tiles.prefill.constants
    assert (decode["BLOCK_M"], prefill["BLOCK_M"], prefill["BLOCK_N"]) == PINNED[capability, width]
    assert decode["SPAN"] == 1024
