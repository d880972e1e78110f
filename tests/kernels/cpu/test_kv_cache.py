"""What ``kv_write`` puts into a cache, read back by the layout that kv_cache.h draws."""

import numpy as np
import pytest

from optpipe.errors import KernelError
from optpipe_kernels.cpu.cache import cache_bytes

TABLES = [(16, 2, 64, 64), (5, 1, 20, 12), (48, 3, 7, 16)]  # block, H_kv, D, Dv


def written(library, caches, k, v, slots, pool=None):
    library.call("kv_write", [k, v, slots, *caches.operands], pool=pool)


@pytest.mark.parametrize(("block", "heads", "width", "deep"), TABLES)
@pytest.mark.parametrize("dtype", ["f32", "bf16", "i8"])
def test_a_key_and_its_value_come_back(library, pools, randn, caches, block, heads, width, deep, dtype):
    def near(found, given):
        top = np.abs(given).max(-1, keepdims=True)
        step = {"f32": 0, "bf16": np.abs(given) * 2**-7, "i8": top / 127}[dtype]  # rounding is half a step
        return (np.abs(found - given) <= 0.501 * step).all()

    slots = np.array([0, 3 * block - 1, block, 7])
    for pool in pools.values():
        made = caches(3, block, heads, width, deep, dtype)
        k, v = randn(4, heads, width) * 3, randn(4, heads, deep) * 3
        written(library, made, k, v, slots, pool)
        keys, values = made.read(slots)
        assert near(keys, k)
        assert near(values, v)


def test_a_negative_slot_writes_nothing(library, randn, caches):
    made = caches(2, 16, 1, 8, 8, "f32")
    before = [it.copy() for it in made.raw]
    written(library, made, randn(3, 1, 8), randn(3, 1, 8), np.full(3, -1))
    for one, other in zip(before, made.raw, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_slot_past_the_cache_fails(library, randn, caches):
    made = caches(2, 16, 1, 8, 8, "f32")
    with pytest.raises(KernelError, match="kv_write: a slot lies outside the cache"):
        written(library, made, randn(1, 1, 8), randn(1, 1, 8), np.array([32]))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_is_not_rounded_away(library, randn, caches, bad):
    made = caches(1, 16, 1, 20, 20, "i8")
    k = randn(2, 1, 20)
    k[0, 0, 13] = bad
    written(library, made, k, k.copy(), np.arange(2))
    keys, values = made.read(np.arange(2))
    assert not np.isfinite(keys[0]).any() and not np.isfinite(values[0]).any()
    assert np.isfinite(keys[1]).all() and np.isfinite(values[1]).all()


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dtype", ["f32", "i8"])
@pytest.mark.parametrize("with_query", [False, True])
def test_turning_and_writing_is_rope_then_kv_write(
    library, pools, randn, caches, interleaved, dtype, with_query
):
    qkv, cos, sin = randn(5, (6 + 2 + 2) * 20), randn(5, 12), randn(5, 12)
    q, k, v = (part.reshape(5, -1, 20) for part in np.split(qkv, [120, 160], axis=1))
    slots = np.array([3, -1, 0, 31, 8])
    apart, together = caches(2, 16, 2, 20, 20, dtype), caches(2, 16, 2, 20, 20, dtype)
    turned_q, turned_k = np.zeros((5, 6, 20), np.float32), np.zeros((5, 2, 20), np.float32)
    library.call("rope", [q, cos, sin, turned_q], (int(interleaved),))
    library.call("rope", [k, cos, sin, turned_k], (int(interleaved),))
    written(library, apart, turned_k, v, slots)
    for pool in pools.values():
        out = np.full((5, 6, 20), np.nan, np.float32) if with_query else None
        reads = [q if with_query else None, k, v, cos, sin, slots]
        library.call("rope_kv_write", [*reads, out, *together.operands], (int(interleaved),), pool=pool)
        if out is not None:
            np.testing.assert_array_equal(out, turned_q)
        for one, other in zip(apart.raw, together.raw, strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_block_takes_what_cache_bytes_says(caches, library, randn):
    """Filling every slot touches no byte past the cache."""
    for dtype in ("f32", "bf16", "i8"):
        made = caches(3, 5, 2, 7, 9, dtype)
        written(library, made, randn(15, 2, 7), randn(15, 2, 9), np.arange(15))
        assert made.guards_hold()
        assert len(made.raw[0]) == 3 * cache_bytes(5, 2, 7, dtype, keys=True)
