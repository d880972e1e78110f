"""The lists of captured steps: those of the step as it is, in no more room than its contexts need."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from optpipe.targets.protocol import StepInputs
from optpipe_kernels.cuda.attention import Layer, Lists
from optpipe_kernels.cuda.buckets import bucket_of, padded

BLOCK = 16
KINDS = ((None, None), (1500, None), (None, 2048), (512, 4096))  # window, chunk


def decode(contexts):
    count, blocks = len(contexts), -(-max(contexts) // BLOCK)
    each = np.arange(count)
    return StepInputs(
        each, np.array(contexts) - 1, each, np.arange(count + 1, dtype=np.int32),
        np.array(contexts, np.int32), np.zeros((count, blocks), np.int32), each,
    )  # fmt: skip


def lists_of(*kinds):
    layers = [Layer(32, 8, 128, 128, window, chunk) for window, chunk in kinds]
    return Lists(layers, 2, torch.device("cpu"), batch_invariant=True)


@pytest.mark.parametrize("seed", range(6))
def test_a_padded_step_has_the_items_of_the_step(seed):
    rng, lists = np.random.default_rng(seed), lists_of(*KINDS)
    contexts = np.exp(rng.uniform(0, np.log(20_000), rng.integers(1, 30))).astype(int) + 1
    step = decode(contexts.tolist())
    bucket = bucket_of(step)
    (plain, _), (found, counts) = (
        lists.arrays(step, None, BLOCK),
        lists.arrays(padded(step, bucket), bucket, BLOCK),
    )
    for number, (window, _) in enumerate(KINDS):
        starts, owners = (found[f"{name}.{number}"] for name in ("item_start", "item_sequence"))
        own = plain[f"item_start.{number}"]
        np.testing.assert_array_equal(starts[: len(own)], own)
        assert (starts[len(own) :] == own[-1]).all()
        np.testing.assert_array_equal(owners[: own[-1]], plain[f"item_sequence.{number}"])
        assert np.diff(own).max() <= counts[number].most_items
        if window == 512:  # a window is never in more than two spans
            assert counts[number].most_items <= 2


def test_one_long_context_among_short_ones_takes_room_for_one():
    step = decode([120_000, *[700] * 255])
    bucket, lists = bucket_of(step), lists_of((None, None))
    arrays, (counts,) = lists.arrays(padded(step, bucket), bucket, BLOCK)
    span = 1024
    assert counts.most_items == 8192 * BLOCK // span
    assert len(arrays["item_sequence.0"]) <= 2 * step.context_lens.sum() // span + 256 < 1000
