"""Choosing tokens."""

import math

import numpy as np
import pytest

from optpipe.errors import KernelError, RequestError
from optpipe_runtime.sampling_simple import Sampler, Sampling, candidates

LOGITS = np.log(np.array([0.1, 0.5, 0.05, 0.35], dtype=np.float32))


def test_greedy_takes_the_likeliest_and_the_first_of_equals():
    assert Sampler(Sampling()).choose(LOGITS) == 1
    assert Sampler(Sampling()).choose(np.array([0, 2, 2], dtype=np.float32)) == 1


def test_probabilities_follow_the_temperature():
    order, probabilities = candidates(LOGITS, Sampling(temperature=1.0))
    assert order.tolist() == [1, 3, 0, 2]
    np.testing.assert_allclose(probabilities, [0.5, 0.35, 0.1, 0.05], rtol=1e-6)
    _, hot = candidates(LOGITS, Sampling(temperature=2.0))
    root = np.sqrt([0.5, 0.35, 0.1, 0.05])
    np.testing.assert_allclose(hot, root / root.sum(), rtol=1e-6)


def test_top_k_and_top_p_keep_the_likeliest():
    order, probabilities = candidates(LOGITS, Sampling(temperature=1.0, top_k=2))
    assert order.tolist() == [1, 3]
    np.testing.assert_allclose(probabilities, [0.5 / 0.85, 0.35 / 0.85], rtol=1e-6)
    assert candidates(LOGITS, Sampling(temperature=1.0, top_p=0.6))[0].tolist() == [1, 3]
    assert candidates(LOGITS, Sampling(temperature=1.0, top_p=1e-9))[0].tolist() == [1]


def test_a_temperature_near_zero_is_greedy():
    assert Sampler(Sampling(temperature=1e-300)).choose(LOGITS) == 1


def test_one_seed_gives_one_sequence_and_the_frequencies_are_the_probabilities():
    draws = [Sampler(Sampling(temperature=1.0, seed=3)) for _ in range(2)]
    first, second = ([sampler.choose(LOGITS) for _ in range(4000)] for sampler in draws)
    assert first == second
    shares = np.bincount(first, minlength=4) / 4000
    # Four standard errors of a share of 4,000 draws: 4 × sqrt(0.25 / 4000).
    np.testing.assert_allclose(shares, [0.1, 0.5, 0.05, 0.35], atol=0.032)


@pytest.mark.parametrize("row", [[math.nan, 1], [math.inf, 1], [-math.inf, -math.inf]])
def test_logits_that_are_no_numbers_are_refused(row):
    with pytest.raises(KernelError):
        Sampler(Sampling()).choose(np.array(row, dtype=np.float32))


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"top_p": math.nan},
        {"seed": -1},
    ],
)
def test_options_out_of_range_are_refused_by_name(options):
    with pytest.raises(RequestError, match=next(iter(options))):
        Sampling(**options)
