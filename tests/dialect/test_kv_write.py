"""``kv_write`` puts a token's keys and values into its slot and touches no other."""

import pytest
import torch

from optpipe.dialect.kv_write import kv_write
from optpipe.errors import KernelError


def caches(blocks=3, block=4, dtype=torch.float32):
    return tuple(torch.full((blocks, block, 2, width), torch.nan, dtype=dtype) for width in (5, 6))


def test_slot_s_is_row_s_mod_block_of_block_s_div_block(randn):
    k, v, (k_cache, v_cache) = randn(3, 2, 5), randn(3, 2, 6), caches()
    kv_write(k, v, k_cache, v_cache, torch.tensor([9, 0, 7]))
    for token, (block, row) in enumerate([(2, 1), (0, 0), (1, 3)]):
        assert k_cache[block, row].equal(k[token])
        assert v_cache[block, row].equal(v[token])
    assert int(k_cache.isnan().any(-1).any(-1).sum()) == 12 - 3


@pytest.mark.parametrize("slots", [[-1, 4, -1], [-7, -1, -1]], ids=str)
def test_negative_slots_are_skipped(randn, slots):
    k, v, (k_cache, v_cache) = randn(3, 2, 5), randn(3, 2, 6), caches()
    kv_write(k, v, k_cache, v_cache, torch.tensor(slots))
    written = [token for token, slot in enumerate(slots) if slot >= 0]
    assert int((~v_cache.isnan()).any(-1).any(-1).sum()) == len(written)
    assert all(k_cache[1, 0].equal(k[token]) for token in written)


def test_the_cache_keeps_its_own_dtype(randn):
    k, v, (k_cache, v_cache) = randn(1, 2, 5), randn(1, 2, 6), caches(dtype=torch.bfloat16)
    kv_write(k, v, k_cache, v_cache, torch.tensor([2]))
    assert k_cache[0, 2].equal(k[0].bfloat16())


@pytest.mark.parametrize(("keys", "values", "slots"), [(3, 2, 3), (2, 2, 3), (2, 3, 3)])
def test_operands_of_different_lengths_are_refused(randn, keys, values, slots):
    with pytest.raises(KernelError, match=f"got {keys} keys, {values} values and {slots} slots"):
        kv_write(randn(keys, 2, 5), randn(values, 2, 6), *caches(), torch.arange(slots))
