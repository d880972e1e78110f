import numpy as np
import pytest
import torch

from optpipe.dialect.attention import attention
from optpipe.errors import KernelError
from optpipe.testing import tolerance

TILE = 128  # keys whose softmax runs at once, as attention_units.h has it
HEADS = [(9, 3, 64, 64), (4, 1, 80, 16), (6, 6, 12, 12), (2, 1, 7, 5)]  # H, H_kv, D, Dv
OPTIONS = [
    {}, {"window": 1}, {"window": 7}, {"chunk": 64}, {"softcap": 3.0}, {"sinks": True}, {"alibi": True},
    {"window": 100, "sinks": True, "softcap": 30.0, "alibi": True},
]  # fmt: skip
SEQUENCES = [(40, 1), (700, 3), (17, 17), (3, 1), (530, 100)]  # (tokens with this step's, this step's)


class Packed:
    """Sequences in one cache, their blocks in no order; what was never written is NaN."""

    def __init__(self, library, caches, randn, sequences, heads, block=16, dtype="f32"):
        self.library, self.lens = library, np.array([length for length, _ in sequences], np.int32)
        new = np.array([count for _, count in sequences])
        self.query_start = np.concatenate([[0], np.cumsum(new)]).astype(np.int32)
        self.heads, kv_heads, self.width, self.deep = heads
        counts = -(-self.lens // block)
        order = np.random.default_rng(1).permutation(counts.sum() + 2).astype(np.int32)
        self.tables = np.full((len(new), counts.max()), 10**6, np.int32)  # past its blocks a row is not read
        self.caches = caches(len(order), block, kv_heads, self.width, self.deep, dtype)
        self.k = [randn(n, kv_heads, self.width) for n in self.lens]
        self.v = [randn(n, kv_heads, self.deep) for n in self.lens]
        self.q = randn(new.sum(), self.heads, self.width)
        for b, (end, count) in enumerate(zip(np.cumsum(counts), counts, strict=True)):
            self.tables[b, :count] = order[end - count : end]
            at = np.arange(self.lens[b])
            slots = self.tables[b][at // block].astype(np.int64) * block + at % block
            library.call("kv_write", [self.k[b], self.v[b], slots, *self.caches.operands])
        self.options = {"sinks": randn(self.heads), "alibi": np.abs(randn(self.heads)) / 10}

    def attend(self, pool=None, rows=None, sequences=slice(None), lens=None, **options):
        """[rows, H, Dv]; all of the step unless told which rows of which sequences."""
        q = self.q if rows is None else self.q[rows]
        starts = self.query_start if rows is None else np.array([0, len(q)], np.int32)
        lens = self.lens[sequences] if lens is None else lens
        given = [self.options[name] if options.get(name) else None for name in ("sinks", "alibi")]
        out = np.full((len(q), self.heads, self.deep), np.nan, np.float32)
        reads = [q, *self.caches.operands, starts, lens, self.tables[sequences], *given]
        ints = (options.get("window", -1), options.get("chunk", -1))
        self.library.call("paged_attention", [*reads, out], ints, (0.3, options.get("softcap", 0)), pool=pool)
        return out

    def expected(self, **options):
        """Each sequence by itself, by the dialect's attention in float64."""
        given = [self.options[name] if options.get(name) else None for name in ("sinks", "alibi")]
        limits = {name: options.get(name) for name in ("window", "chunk", "softcap")}
        parts = []
        for b, count in enumerate(np.diff(self.query_start)):
            ends = self.query_start[b + 1]
            q = np.zeros((self.lens[b], self.heads, self.width), np.float32)
            q[self.lens[b] - count :] = self.q[ends - count : ends]
            q, k, v, *extra = (
                None if it is None else torch.from_numpy(it).double()
                for it in (q, self.k[b], self.v[b], *given)
            )
            parts.append(
                attention(q, k, v, None, *extra, scale=0.3, **limits)[self.lens[b] - count :].numpy()
            )
        return np.concatenate(parts)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda given: " ".join(given) or "plain")
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_equals_attention_of_each_sequence_alone(library, caches, randn, pools, heads, options):
    packed = Packed(library, caches, randn, SEQUENCES, heads)
    found = packed.attend(pools[2], **options)
    np.testing.assert_allclose(found, packed.expected(**options), **tolerance("float32"))


@pytest.mark.parametrize("block", [1, 5, 16, 32, 48])
def test_any_size_of_block(library, caches, randn, pools, block):
    packed = Packed(library, caches, randn, SEQUENCES, (6, 2, 20, 20), block)
    for options in ({}, {"window": 30}):
        found = packed.attend(pools[2], **options)
        np.testing.assert_allclose(found, packed.expected(**options), **tolerance("float32"))


@pytest.mark.parametrize(
    ("dtype", "atol"), [("bf16", 2e-2), ("i8", 4e-2)]
)  # 3 % of scores of about 3, and of values
@pytest.mark.parametrize("block", [5, 16])
def test_caches_of_fewer_bits(library, caches, randn, pools, dtype, atol, block):
    packed = Packed(library, caches, randn, SEQUENCES, (4, 2, 24, 20), block, dtype)
    packed.q /= 4
    found, expected = packed.attend(pools[2]), packed.expected()
    assert np.abs(found - expected).max() < 4 * atol
    assert np.sqrt(np.mean((found - expected) ** 2)) < atol / 2


@pytest.mark.parametrize("dtype", ["f32", "bf16", "i8"])
@pytest.mark.parametrize("options", [{}, {"window": 100}, {"chunk": 64, "sinks": True}], ids=str)
def test_a_row_has_the_same_bits_alone_in_a_batch_in_a_prompt_and_on_any_threads(
    library, caches, randn, pools, dtype, options
):
    sequences = [(TILE * 2 + 40, 3), (17, 17), (TILE + 1, 1), (90, 40)]
    packed = Packed(library, caches, randn, sequences, (6, 2, 20, 20), dtype=dtype)
    together = packed.attend(**options)
    for pool in pools.values():
        np.testing.assert_array_equal(packed.attend(pool, **options), together)
    for b, (length, count) in enumerate(sequences):
        for k in range(count):
            row = packed.query_start[b] + k
            lens = np.array([length - count + k + 1], np.int32)
            for pool in (pools[1], pools[3]):  # several threads share one long sequence
                alone = packed.attend(pool, slice(row, row + 1), slice(b, b + 1), lens, **options)
                np.testing.assert_array_equal(alone[0], together[row])


def test_tiles_of_a_long_context_join_on_any_threads(library, caches, randn, pools):
    packed = Packed(library, caches, randn, [(5 * TILE + 3, 1)], (4, 2, 16, 16), block=32)
    for options in ({}, {"sinks": True}, {"window": 2 * TILE + 1}):
        expected = packed.expected(**options)
        alone = packed.attend(**options)
        np.testing.assert_allclose(alone, expected, **tolerance("float32"))
        for pool in pools.values():
            np.testing.assert_array_equal(packed.attend(pool, **options), alone)


@pytest.mark.parametrize("dtype", ["f32", "bf16", "i8"])
def test_nothing_of_another_sequence_leaks(library, caches, randn, pools, dtype):
    packed = Packed(library, caches, randn, [(70, 5), (50, 2)], (4, 2, 16, 16), dtype=dtype)
    before = packed.attend(pools[2])
    spoilt = np.full_like(packed.k[1], np.nan)
    at = np.arange(50)
    slots = packed.tables[1][at // 16].astype(np.int64) * 16 + at % 16
    library.call("kv_write", [spoilt, spoilt, slots, *packed.caches.operands])
    after = packed.attend(pools[2])
    np.testing.assert_array_equal(after[:5], before[:5])
    assert np.isnan(after[5:]).all()


@pytest.mark.parametrize("dtype", ["f32", "bf16", "i8"])
def test_what_a_window_has_left_behind_changes_nothing(library, caches, randn, pools, dtype):
    packed = Packed(library, caches, randn, [(90, 2)], (4, 2, 16, 16), dtype=dtype)
    before = packed.attend(pools[2], window=20)
    spoilt = np.full((64, 2, 16), np.nan, np.float32)
    at = np.arange(64)
    slots = packed.tables[0][at // 16].astype(np.int64) * 16 + at % 16
    library.call("kv_write", [spoilt, spoilt, slots, *packed.caches.operands])
    np.testing.assert_array_equal(packed.attend(pools[2], window=20), before)


def test_rows_outside_every_sequence_are_zero(library, caches, randn, pools):
    packed = Packed(library, caches, randn, [(9, 4), (5, 3)], (4, 2, 16, 16))
    packed.query_start = np.array([1, 4, 6], np.int32)
    found = packed.attend(pools[2])
    assert not found[0].any() and not found[6].any()
    assert found[1:6].any(axis=(1, 2)).all()


def test_queries_inside_a_wider_row(library, caches, randn):
    packed = Packed(library, caches, randn, SEQUENCES, (6, 2, 20, 20))
    expected = packed.attend()
    wide = randn(len(packed.q), 10, 20)
    wide[:, 1:7] = packed.q
    packed.q = wide[:, 1:7]
    np.testing.assert_array_equal(packed.attend(), expected)


def test_refuses_heads_that_do_not_divide(library, caches, randn):
    packed = Packed(library, caches, randn, [(9, 4)], (4, 2, 16, 16))
    packed.heads, packed.q = 5, randn(4, 5, 16)
    with pytest.raises(KernelError, match="paged_attention: the query heads must be a multiple"):
        packed.attend()
