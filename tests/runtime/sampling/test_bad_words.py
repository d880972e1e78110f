"""Bad words of several tokens."""

from __future__ import annotations

import numpy as np

from optpipe_runtime.sampling import Group, Sampler, SamplingParams, encode_bad_words


def test_a_word_is_known_with_and_without_a_space_before_it() -> None:
    table = {"cat": [1, 2], " cat": [3, 2], "long": [4], " long": [5, 6], "same": [7], " same": [7]}
    assert encode_bad_words(["cat", "long", "same"], lambda text: table[text]) == ((1, 2), (3, 2), (4,), (7,))


def test_only_the_token_that_would_complete_a_word_is_masked() -> None:
    sampler = Sampler(6)
    logits = np.asarray([[0, 1, 2, 3, 4, 5]], dtype=np.float32)
    state = sampler.state(
        SamplingParams(temperature=0.0), [4], eos=[], seed=0, bad_words=((5, 5, 5), (4, 5), (5, 5, 4))
    )
    tokens = [sampler.sample(logits, [Group(state)])[0].tokens[0] for _ in range(6)]
    # 5 5, then neither 5 nor 4 fits; the prompt's 4 does not begin a word.
    assert tokens == [5, 5, 3, 5, 5, 3]
