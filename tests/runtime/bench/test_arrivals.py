"""Planned times of arrival."""

import itertools
import math
import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optpipe.errors import RequestError
from optpipe_runtime.bench.arrivals import Arrivals

COUNT = 4000


@given(st.floats(0.1, 1000), st.integers(1, 8), st.integers())
@settings(max_examples=25, deadline=None)
def test_the_rate_is_the_rate_with_and_without_bursts(rate, burst, seed):
    planned = Arrivals(rate=rate, burst=burst).plan(COUNT, random.Random(seed))
    assert planned[0] == 0
    assert planned == sorted(planned)
    starts = planned[::burst]
    gaps = [b - a for a, b in itertools.pairwise(starts)]
    # Exponential: the deviation is the mean, of n gaps mean / sqrt(n).
    assert statistics.fmean(gaps) == pytest.approx(burst / rate, rel=6 / math.sqrt(len(gaps)))
    assert all(planned[i] == planned[i - i % burst] for i in range(COUNT))


def test_gaps_are_exponential():
    planned = Arrivals(rate=10).plan(20_000, random.Random(1))
    gaps = [b - a for a, b in itertools.pairwise(planned)]
    for share in (0.1, 0.5, 0.9):
        value = -math.log(1 - share) / 10
        assert sum(it <= value for it in gaps) / len(gaps) == pytest.approx(share, abs=0.02)


def test_without_a_rate_all_come_at_the_beginning():
    assert Arrivals().plan(3, random.Random(0)) == [0, 0, 0]


def test_a_closed_loop_plans_nothing():
    assert Arrivals(rate=None, concurrency=2).plan(3, random.Random(0)) == [None] * 3


@pytest.mark.parametrize(
    "wrong",
    [{"rate": 0}, {"rate": -1}, {"rate": math.nan}, {"burst": 0}, {"concurrency": 0}, {"rate": None}],
    ids=str,
)
def test_what_is_no_plan_is_refused(wrong):
    with pytest.raises(RequestError):
        Arrivals(**wrong)


def test_a_plan_says_what_it_is():
    assert (
        str(Arrivals(rate=4, burst=2, concurrency=8))
        == "Poisson, 4 a second in bursts of 2, at most 8 at once"
    )
    assert str(Arrivals()) == "all at the beginning"
    assert str(Arrivals(rate=None, concurrency=3)) == "closed loop, 3 at once"
