"""``paged_attention`` over scattered blocks gives each sequence what ``attention`` gives it alone."""

import pytest
import torch

from optpipe.dialect.attention import attention
from optpipe.dialect.kv_write import kv_write
from optpipe.dialect.paged_attention import TILE_TOKENS, paged_attention
from optpipe.errors import KernelError
from optpipe.testing import tolerance

HEADS, KV_HEADS, DIM, VALUE_DIM = 6, 2, 7, 5


class Packed:
    """Sequences in one cache; blocks are handed out in no order, and hold NaN where nothing was written."""

    def __init__(self, randn, lengths, block):
        self.q, self.k, self.v = (
            [randn(length, heads, dim) for length in lengths]
            for heads, dim in ((HEADS, DIM), (KV_HEADS, DIM), (KV_HEADS, VALUE_DIM))
        )
        counts = [-(-length // block) for length in lengths]
        order = torch.randperm(sum(counts) + 2, generator=torch.Generator().manual_seed(0))
        unread = 10**6  # past a sequence's blocks
        self.tables = torch.full((len(lengths), max(counts)), unread, dtype=torch.int32)
        self.block, used = block, 0
        for row, count in enumerate(counts):
            self.tables[row, :count] = order[used : used + count]
            used += count
        self.k_cache = torch.full((len(order), block, KV_HEADS, DIM), torch.nan)
        self.v_cache = torch.full((len(order), block, KV_HEADS, VALUE_DIM), torch.nan)

    def step(self, spans, **options):
        """Write and attend for one span (begin, end) a sequence; a list of results."""
        at = [torch.arange(begin, end) for begin, end in spans]
        slots = [
            self.tables[b][one // self.block].long() * self.block + one % self.block
            for b, one in enumerate(at)
        ]
        k, v, q = (torch.cat([x[b][one] for b, one in enumerate(at)]) for x in (self.k, self.v, self.q))
        kv_write(k, v, self.k_cache, self.v_cache, torch.cat(slots))
        sizes = [len(one) for one in at]
        found = paged_attention(
            q,
            self.k_cache,
            self.v_cache,
            torch.tensor([0, *sizes], dtype=torch.int32).cumsum(0, dtype=torch.int32),
            torch.tensor([end for _, end in spans], dtype=torch.int32),
            self.tables,
            options.pop("sinks", None),
            options.pop("alibi", None),
            **options,
        )
        return found.split(sizes)


def alone(packed, **options):
    sinks, alibi = options.pop("sinks", None), options.pop("alibi", None)
    return [
        attention(q, k, v, None, sinks, alibi, **options)
        for q, k, v in zip(packed.q, packed.k, packed.v, strict=True)
    ]


OPTIONS = [
    {},
    {"window": 3},
    {"window": 1},
    {"chunk": 4},
    {"softcap": 1.5},
    {"sinks": torch.linspace(-1, 2, HEADS)},
    {"alibi": torch.linspace(0.1, 0.7, HEADS)},
    {"sinks": torch.linspace(-1, 2, HEADS), "window": 2, "softcap": 3.0},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda given: " ".join(given) or "plain")
@pytest.mark.parametrize("block", [1, 3, 16])
def test_whole_prompts_packed(randn, options, block):
    packed = Packed(randn, [9, 1, 14], block)
    found = packed.step([(0, 9), (0, 1), (0, 14)], scale=0.3, **options)
    for mine, expected in zip(found, alone(packed, scale=0.3, **options), strict=True):
        torch.testing.assert_close(mine, expected, **tolerance("float32"))


@pytest.mark.parametrize("options", OPTIONS, ids=lambda given: " ".join(given) or "plain")
def test_chunks_of_prompts_and_single_tokens_in_one_step(randn, options):
    packed = Packed(randn, [9, 6, 14], block=4)
    parts = [[] for _ in range(3)]
    for spans in ([(0, 4), (0, 5), (0, 0)], [(4, 5), (5, 5), (0, 7)], [(5, 9), (5, 6), (7, 14)]):
        for mine, rows in zip(packed.step(spans, scale=0.3, **options), parts, strict=True):
            rows.append(mine)
    for rows, expected in zip(parts, alone(packed, scale=0.3, **options), strict=True):
        torch.testing.assert_close(torch.cat(rows), expected, **tolerance("float32"))


@pytest.mark.parametrize(
    "options", [{}, {"window": 40}, {"chunk": 100}, {"sinks": torch.zeros(HEADS)}], ids=str
)
def test_long_contexts_cross_tiles_without_a_seam(randn, options):
    length = 2 * TILE_TOKENS + 37
    packed = Packed(randn, [length], block=16)
    packed.step([(0, length - 1)], scale=0.3, **options)
    (found,) = packed.step([(length - 1, length)], scale=0.3, **options)
    torch.testing.assert_close(found, alone(packed, scale=0.3, **options)[0][-1:], **tolerance("float32"))


def test_rows_outside_every_sequence_are_zero(randn):
    packed = Packed(randn, [5], block=4)
    packed.step([(0, 5)], scale=0.3)
    starts, lengths = torch.tensor([0, 2], dtype=torch.int32), torch.tensor([5], dtype=torch.int32)
    q = torch.cat([packed.q[0][3:], torch.full((3, HEADS, DIM), torch.nan)])
    found = paged_attention(q, packed.k_cache, packed.v_cache, starts, lengths, packed.tables, scale=0.3)
    assert found[2:].eq(0).all()
    torch.testing.assert_close(found[:2], alone(packed, scale=0.3)[0][3:], **tolerance("float32"))


def test_keys_that_a_window_has_left_behind_may_hold_anything(randn):
    packed = Packed(randn, [14], block=4)
    packed.step([(0, 13)], scale=0.3, window=5)
    packed.k_cache[packed.tables[0, :2].long()] = torch.nan  # positions 0 to 7; token 13 sees 9 to 13
    packed.v_cache[packed.tables[0, :2].long()] = torch.nan
    (found,) = packed.step([(13, 14)], scale=0.3, window=5)
    torch.testing.assert_close(found, alone(packed, scale=0.3, window=5)[0][13:], **tolerance("float32"))


def test_float64_is_not_rounded(randn):
    packed = Packed(randn, [9, 6], block=4)
    for name in ("q", "k", "v"):
        setattr(packed, name, [x.double() for x in getattr(packed, name)])
    packed.k_cache, packed.v_cache = packed.k_cache.double(), packed.v_cache.double()
    found = packed.step([(0, 9), (0, 6)], scale=0.3)
    for mine, expected in zip(found, alone(packed, scale=0.3), strict=True):
        torch.testing.assert_close(mine, expected, **tolerance("float64"))


def test_heads_that_cannot_share_keys_are_refused(randn):
    packed = Packed(randn, [2], block=4)
    packed.q = [randn(2, 5, DIM)]
    with pytest.raises(KernelError, match="H divisible by H_kv, got 5 and 2"):
        packed.step([(0, 2)], scale=1.0)
