"""A step's arrays on the device: every one at its place, whatever was there before."""

from __future__ import annotations

import numpy as np
import torch

from optpipe.targets.steps import one_sequence
from optpipe_kernels.cuda.staging import ALIGNMENT, TURNS, Staging, key_of, layout_of

CPU = torch.device("cpu")


def arrays(seed, tokens=5, width=3):
    rng = np.random.default_rng(seed)
    return {
        "token_ids": rng.integers(-9, 9, tokens),
        "query_start": rng.integers(0, 9, 2).astype(np.int32),
        "empty": np.zeros(0, np.int32),
        "block_tables": rng.integers(0, 9, (2, width)).astype(np.int32),
    }


def test_places_are_aligned_and_apart():
    layout = layout_of(key_of(arrays(0)))
    sizes = [it.nbytes for it in arrays(0).values()]
    ends = [begin + size for begin, size in zip(layout.begins, sizes, strict=True)]
    assert all(begin % ALIGNMENT == 0 for begin in layout.begins)
    assert all(end <= begin for end, begin in zip(ends, layout.begins[1:], strict=False))
    assert ends[-1] <= layout.nbytes


def test_what_comes_out_is_what_went_in_for_many_steps_and_shapes():
    staging = Staging(CPU, 64)
    for seed in range(4 * TURNS):
        given = arrays(seed, tokens=1 + seed % 5 * 7, width=1 + seed % 3)
        found = staging.stage(given)
        for name, array in given.items():
            assert found[name].shape == array.shape
            np.testing.assert_array_equal(found[name].numpy(), array)
    assert staging.grown >= 1


def test_one_shape_lies_at_one_place_until_the_buffer_grows():
    staging = Staging(CPU, 1 << 10)
    first = staging.stage(arrays(1))
    staging.stage(arrays(2, tokens=9))
    again = staging.stage(arrays(3))
    assert {name: it.data_ptr() for name, it in first.items()} == {
        name: it.data_ptr() for name, it in again.items()
    }
    assert staging.grown == 0
    staging.stage(arrays(4, tokens=1000))
    assert staging.grown == 1


def test_a_step_is_staged_with_the_dtypes_of_the_protocol():
    staging = Staging(CPU)
    step = one_sequence(np.arange(20), 16)
    found = staging.stage(vars(step))
    assert found["token_ids"].dtype is torch.int64
    assert found["block_tables"].dtype is torch.int32
    np.testing.assert_array_equal(found["block_tables"].numpy(), [[0, 1]])
