"""Distributions of lengths: their bounds, means and percentiles."""

import math
import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optpipe.errors import RequestError
from optpipe_runtime.bench.lengths import LONGEST, Fixed, Lognormal, Uniform, chat, parse_lengths

DRAWS = 4000


def draws(lengths, count=DRAWS, seed=0):
    source = random.Random(seed)
    return [lengths.draw(source) for _ in range(count)]


@given(st.integers(1, LONGEST))
def test_fixed_is_always_the_same(tokens):
    lengths = parse_lengths(str(tokens))
    assert draws(lengths, 3) == [tokens] * 3
    assert lengths.most == tokens


@given(st.integers(1, 500), st.integers(0, 500), st.integers())
@settings(max_examples=25, deadline=None)
def test_uniform_has_its_mean_and_its_ends(low, width, seed):
    lengths = parse_lengths(f"{low}-{low + width}")
    found = draws(lengths, seed=seed)
    assert low <= min(found) <= max(found) <= low + width == lengths.most
    # The mean of n draws has a deviation of sqrt(((w + 1)² − 1) / 12 / n); six of them are one chance in 10⁹.
    deviation = math.sqrt(((width + 1) ** 2 - 1) / 12 / DRAWS)
    assert abs(statistics.fmean(found) - (low + width / 2)) <= 6 * deviation


@given(st.floats(20, 500), st.floats(0.1, 1.5), st.integers())
@settings(max_examples=25, deadline=None)
def test_lognormal_has_its_percentiles(median, spread, seed):
    found = sorted(draws(Lognormal(median, spread, most=LONGEST), seed=seed))
    normal = statistics.NormalDist(math.log(median), spread)
    for share in (0.1, 0.5, 0.9):
        value = math.exp(normal.inv_cdf(share))
        below = sum(it <= value for it in found) / DRAWS
        # A share of n draws has a deviation of sqrt(p (1 − p) / n). Rounding to whole tokens moves values by
        # half a token, which moves the share by the density there.
        density = normal.pdf(math.log(value)) / value
        assert abs(below - share) <= 6 * math.sqrt(share * (1 - share) / DRAWS) + density, share


# Of the trace that it is a fit to: mean, 10th, 50th and 90th percentile.
TRACE = {"input": (1155, 207, 1020, 2734), "output": (211, 54, 129, 424)}


@pytest.mark.parametrize("side", ["input", "output"])
def test_chat_is_like_its_source(side):
    found = sorted(draws(chat(side), 20_000))
    mean, *percentiles = TRACE[side]
    assert statistics.fmean(found) == pytest.approx(mean, rel=0.1)
    for share, value in zip((0.1, 0.5, 0.9), percentiles, strict=True):
        assert found[int(share * len(found))] == pytest.approx(value, rel=0.3), share
    assert found[-1] <= chat(side).most == 4096
    assert sum(it == 4096 for it in found) < 0.06 * len(found)


@pytest.mark.parametrize(
    "text",
    ["", "0", "-1", "8-4", "0-4", "x", "1.5", "4-", "lognormal:80", "lognormal:0:1", "lognormal:nan:1"],
)
def test_what_is_no_distribution_is_refused(text):
    with pytest.raises(RequestError, match="no distribution of lengths"):
        parse_lengths(text)


def test_huge_spreads_stay_in_bounds():
    found = draws(parse_lengths("lognormal:80:10:64"))
    assert min(found) >= 1
    assert max(found) == 64


@pytest.mark.parametrize("lengths", [Fixed(5), Uniform(1, 9), Lognormal(20, 1.5, 300)], ids=str)
def test_written_and_read_again_is_the_same(lengths):
    assert parse_lengths(str(lengths)) == lengths
