"""What a step must be, of a handful of numbers and of many."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from optpipe.errors import RequestError
from optpipe.targets.protocol import StepInputs
from optpipe.targets.steps import check_step

BLOCK, VOCAB = 4, 100


def step_of(sequences):
    """So many sequences with 3 tokens of which 2 are new, a block each."""
    tokens = np.arange(2 * sequences)
    return StepInputs(
        token_ids=tokens % VOCAB,
        positions=1 + tokens % 2,
        slot_mapping=tokens // 2 * BLOCK + 1 + tokens % 2,
        query_start=(2 * np.arange(sequences + 1)).astype(np.int32),
        context_lens=np.full(sequences, 3, np.int32),
        block_tables=np.arange(sequences, dtype=np.int32)[:, None],
        logit_rows=2 * np.arange(sequences) + 1,
    )


def changed(step, name, place, value):
    array = getattr(step, name).copy()
    array[place] = value
    return replace(step, **{name: array})


@pytest.fixture(params=[2, 100], ids=["few", "many"])
def step(request):
    return step_of(request.param)


def check(step, **more):
    check_step(step, len(step.context_lens), BLOCK, VOCAB, **more)


def test_a_right_step_passes(step):
    check(step)
    check(replace(step, logit_rows=step.logit_rows[:0]))


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("token_ids", -1, "got -1"),
        ("token_ids", VOCAB, f"got {VOCAB}"),
        ("slot_mapping", 1 << 20, "slot 1048576"),
        ("logit_rows", -1, "logit rows"),
        ("logit_rows", 1 << 20, "logit rows"),
        ("context_lens", 1, "1 has 2 new tokens but a context of 1"),
        ("context_lens", 5, "1 has 5 tokens but 1 blocks"),
        ("block_tables", -1, "1 names a block"),
        ("block_tables", 1 << 20, "1 names a block"),
        ("query_start", 99_999, "query_start"),
    ],
)
def test_a_wrong_number_is_named(step, name, value, said):
    with pytest.raises(RequestError, match=said):
        check(changed(step, name, 1, value))


def test_arrays_of_different_lengths(step):
    with pytest.raises(RequestError, match="positions"):
        check(replace(step, positions=step.positions[1:]))


def test_a_token_of_the_step_before(step):
    fed = changed(step, "token_ids", 0, -2)
    check(fed, fed=2)
    with pytest.raises(RequestError, match="row 1 of the one before, which has 1"):
        check(fed, fed=1)
