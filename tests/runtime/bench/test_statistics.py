"""The metrics against naive computations."""

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optpipe.errors import RequestError
from optpipe_runtime.bench.record import Record
from optpipe_runtime.bench.slo import Slo, parse_slo
from optpipe_runtime.bench.statistics import measure, percentile, summary

SECONDS = st.floats(0, 1000)
NOTHING = {"mean": None, "p50": None, "p90": None, "p99": None}


@given(st.lists(SECONDS, min_size=1), st.floats(0, 100))
def test_percentiles_are_numpys(values, share):
    assert percentile(sorted(values), share) == pytest.approx(np.percentile(values, share), abs=1e-9)


@given(st.lists(SECONDS, min_size=1))
def test_a_summary_is_the_naive_one_in_milliseconds(values):
    found = summary(values)
    assert found["mean"] == pytest.approx(1000 * sum(values) / len(values), abs=1e-6)
    for share in (50, 90, 99):
        assert found[f"p{share}"] == pytest.approx(1000 * np.percentile(values, share), abs=1e-6)


def test_a_summary_of_nothing_has_no_numbers():
    assert summary([]) == NOTHING


def record(arrival=0.0, chunks=(1.0, 1.5, 2.5), tokens=3, **fields):
    return Record(
        arrival,
        sent=arrival,
        chunks=list(chunks),
        prompt_tokens=10,
        output_tokens=tokens,
        asked=tokens,
        **fields,
    )


@given(st.lists(st.lists(st.floats(0.001, 10), min_size=1, max_size=6), min_size=1, max_size=6))
def test_metrics_follow_the_definitions(requests):
    """Each request: gaps from its arrival to the first chunk, and on."""
    records, ttft, tpot, itl, e2e = [], [], [], [], []
    for i, gaps in enumerate(requests):
        times = [i + sum(gaps[: n + 1]) for n in range(len(gaps))]
        records.append(record(float(i), times, len(times)))
        ttft.append(times[0] - i)
        e2e.append(times[-1] - i)
        itl += [b - a for a, b in itertools.pairwise(times)]
        if len(times) > 1:
            tpot.append((times[-1] - times[0]) / (len(times) - 1))
    found = measure(records, 20.0, Slo())
    for key, values in (("ttft", ttft), ("tpot", tpot), ("itl", itl), ("e2e", e2e)):
        assert found[f"{key}_ms"] == pytest.approx(summary(values))
    assert found["output_tokens_per_s"] == pytest.approx(sum(map(len, requests)) / 20)
    assert found["prompt_tokens_per_s"] == pytest.approx(10 * len(requests) / 20)
    assert found["requests_per_s"] == found["goodput_rps"] == pytest.approx(len(requests) / 20)


def test_tpot_goes_by_tokens_and_itl_by_chunks():
    found = record(tokens=7)  # several tokens in a chunk
    assert found.tpot == pytest.approx(1.5 / 6)
    assert found.gaps == [0.5, 1.0]


def test_the_last_token_may_come_behind_the_last_text():
    found = record(last=4.0)
    assert found.e2e == 4.0
    assert found.tpot == 1.5


def test_failures_are_counted_and_not_measured():
    failed = [Record(0.0, error="HTTP 429: full"), Record(0.0, chunks=[9.0], output_tokens=1, error="cut")]
    found = measure([record(), *failed, Record(0.0, error="cut")], 2.0, Slo())
    assert found["requests"] == {
        "sent": 4, "answered": 1, "failed": 3, "errors": {"cut": 2, "HTTP 429: full": 1},
    }  # fmt: skip
    assert found["ttft_ms"]["p99"] == 1000
    assert found["output_tokens_per_s"] == 1.5
    assert found["goodput_rps"] == 0.5


def test_a_run_that_failed_wholly_has_no_metrics():
    found = measure([Record(0.0, error="no")], 1.0, Slo(ttft=1))
    assert found["ttft_ms"] == found["tpot_ms"] == found["itl_ms"] == found["e2e_ms"] == NOTHING
    assert found["goodput_rps"] == found["requests_per_s"] == found["output_tokens_per_s"] == 0
    assert found["tokens"]["counted_by"] == []
    json.dumps(found, allow_nan=False)


def test_prompt_tokens_that_nobody_counts_are_not_guessed():
    unknown = record()
    unknown.prompt_tokens = None
    found = measure([record(), unknown], 1.0, Slo())
    assert found["prompt_tokens_per_s"] is None
    assert found["tokens"]["prompt"] is None


class TestGoodput:
    def test_every_limit_must_be_met(self):
        one = record()  # TTFT 1000, TPOT 750, E2E 2500
        assert Slo(ttft=1000, tpot=750, e2e=2500).met(one), "a limit may be reached"
        assert not Slo(ttft=999, tpot=750).met(one)
        assert not Slo(ttft=1000, tpot=749).met(one)
        assert not Slo(e2e=2499).met(one)

    def test_a_single_token_has_no_tpot_to_exceed(self):
        assert Slo(tpot=0.001).met(record(chunks=[1.0], tokens=1))

    def test_a_failure_is_never_good(self):
        assert not Slo().met(record(error="cut"))

    def test_waiting_for_the_generator_counts(self):
        late = record(arrival=0.0)
        late.sent = 0.9
        assert not Slo(ttft=500).met(late)

    @given(st.lists(st.floats(0.001, 2), min_size=1, max_size=20), st.floats(1, 2000))
    def test_it_is_the_naive_count(self, firsts, limit):
        records = [record(chunks=[it], tokens=1) for it in firsts]
        found = measure(records, 4.0, Slo(ttft=limit))
        assert found["goodput_rps"] == sum(it * 1000 <= limit for it in firsts) / 4


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("", {}),
        ("ttft=200,tpot=50", {"ttft": 200, "tpot": 50}),
        (" e2e = 1.5s ", {"e2e": 1500}),
        ("ttft=3MS", {"ttft": 3}),
    ],
)
def test_limits_are_read(text, limits):
    assert parse_slo(text) == Slo(**limits)


@pytest.mark.parametrize(
    "text",
    [
        "ttft",
        "ttft=",
        "ttft=0",
        "ttft=-1",
        "ttft=nan",
        "ttft=inf",
        "ttft=1m",
        "ttft=1,ttft=2",
        "tptt=3",
        "=1",
    ],
)
def test_wrong_limits_are_refused(text):
    with pytest.raises(RequestError):
        parse_slo(text)


def test_limits_in_json_are_those_stated():
    assert parse_slo("tpot=50").to_json() == {"tpot_ms": 50}
    assert math.isclose(parse_slo("ttft=0.2s").to_json()["ttft_ms"], 200)
