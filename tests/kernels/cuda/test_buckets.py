"""Which steps are captured, and what padding adds to them."""

from __future__ import annotations

import numpy as np
import pytest

from optpipe.targets.protocol import StepInputs
from optpipe_kernels.cuda.buckets import (
    LEAST_BLOCKS,
    LEAST_CONTEXT,
    SEQUENCES,
    Shape,
    bucket_of,
    nothing,
    padded,
)


def decode(count, blocks=2, **changes):
    fields = {
        "token_ids": np.arange(count) + 1,
        "positions": np.arange(count) + 10,
        "slot_mapping": np.arange(count) + 20,
        "query_start": np.arange(count + 1, dtype=np.int32),
        "context_lens": np.full(count, 11, np.int32),
        "block_tables": np.ones((count, blocks), np.int32),
        "logit_rows": np.arange(count),
    }
    return StepInputs(**fields | changes)


@pytest.mark.parametrize(("count", "bucket"), [(1, 1), (2, 2), (3, 4), (9, 16), (33, 48), (512, 512)])
def test_decode_steps_go_to_the_next_bucket(count, bucket):
    assert bucket_of(decode(count)) == Shape(bucket, bucket, bucket, LEAST_BLOCKS, LEAST_CONTEXT * bucket)


@pytest.mark.parametrize(("blocks", "bucket"), [(1, 64), (64, 64), (65, 128), (129, 256)])
def test_block_tables_go_to_the_next_power_of_two(blocks, bucket):
    assert bucket_of(decode(1, blocks)).blocks == bucket


@pytest.mark.parametrize(
    ("contexts", "bucket"), [([2048], 2048), ([2049], 4096), ([9, 3000], 4096), ([1, 2, 5000], 8192)]
)
def test_cached_tokens_go_to_the_next_power_of_two(contexts, bucket):
    step = decode(len(contexts), 256, context_lens=np.array(contexts, np.int32))
    assert bucket_of(step).context == bucket


def test_steps_of_another_kind_run_as_they_are():
    assert bucket_of(decode(SEQUENCES[-1] + 1)) is None
    assert bucket_of(decode(3, logit_rows=np.arange(2))) is None
    assert bucket_of(decode(3, logit_rows=np.array([2, 1, 0]))) is None
    prefill = decode(3, query_start=np.array([0, 3], np.int32), context_lens=np.array([3], np.int32))
    assert bucket_of(prefill) is None
    uneven = decode(3, query_start=np.array([0, 2, 2, 3], np.int32))
    assert bucket_of(uneven) is None


def test_padding_belongs_to_no_sequence_and_writes_nowhere():
    step = decode(3, 5)
    found = padded(step, Shape(4, 4, 4, 64, 4096))
    for name in ("token_ids", "positions", "slot_mapping", "context_lens", "logit_rows"):
        np.testing.assert_array_equal(getattr(found, name)[:3], getattr(step, name))
    assert found.slot_mapping[3] == -1
    assert found.context_lens[3] == 0
    assert found.query_start.tolist() == [0, 1, 2, 3, 3]
    assert found.logit_rows.tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(found.block_tables[:3, :5], step.block_tables)
    assert not found.block_tables[3:].any()
    assert not found.block_tables[:, 5:].any()


def test_nothing_is_padding_alone():
    found = nothing(Shape(8, 8, 8, 64, 8192))
    assert (found.slot_mapping == -1).all()
    assert not found.query_start.any()
    assert found.block_tables.shape == (8, 64)
