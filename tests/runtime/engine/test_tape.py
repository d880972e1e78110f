"""The fake executor itself."""

import numpy as np
import pytest

from optpipe.targets.steps import one_sequence

from ..tape import TapeExecutor


def test_a_step_gives_what_the_tokens_alone_give():
    executor = TapeExecutor()
    executor.allocate(4)
    tokens = [3, 1, 4, 1, 5, 9, 2]
    first = executor.submit(one_sequence(np.asarray(tokens[:5]), 4)).result()
    rest = executor.submit(one_sequence(np.asarray(tokens[5:]), 4, begin=5)).result()
    whole = executor.logits(tokens)
    np.testing.assert_array_equal(np.concatenate([first.logits, rest.logits]), whole)
    assert first.token_ids[0] == executor.next_token([3])
    assert len({row.tobytes() for row in whole}) == 7


def test_order_and_length_count():
    executor = TapeExecutor()
    keys = {executor.row(tokens).tobytes() for tokens in ([1, 2], [2, 1], [2], [0, 2, 1], [1, 1])}
    assert len(keys) == 5


def test_a_short_memory_repeats_itself():
    text = TapeExecutor(vocab_size=8, memory=1).continued([1], 40)
    period = next(p for p in range(1, 9) if text[-p:] == text[-2 * p : -p])
    assert period <= 8


def test_reading_what_was_never_written_is_caught():
    executor = TapeExecutor()
    executor.allocate(4)
    with pytest.raises(AssertionError, match="never written"):
        executor.submit(one_sequence(np.asarray([1, 2]), 4, begin=3))
