"""Requests are decided by the seed; prompts have the wanted lengths."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optpipe.errors import RequestError
from optpipe_runtime.bench.arrivals import Arrivals
from optpipe_runtime.bench.lengths import Fixed, Uniform
from optpipe_runtime.bench.prompts import RandomIds, TextIds, Words, text
from optpipe_runtime.bench.workload import Shape, Workload, read_trace


class Letters:
    """A tokenizer of one id a character."""

    def encode(self, text, *, add_special_tokens=True):
        assert not add_special_tokens
        return [ord(it) for it in text[:5000]]


def workload(prompts=None, *, inputs=None, seed=0, **shape):
    shape = Shape(inputs=inputs or Fixed(20), outputs=Uniform(1, 9), **shape)
    return Workload(prompts or RandomIds(1000), shape, seed)


def test_the_same_seed_gives_the_same_requests():
    arrivals = Arrivals(rate=3)
    first = workload().requests(20, arrivals)
    assert workload().requests(20, arrivals) == first
    assert workload(seed=1).requests(20, arrivals) != first


def test_what_warms_up_is_not_what_is_measured():
    one = workload()
    warm, measured = (one.requests(20, Arrivals(), name=name) for name in ("warm-up", "measured"))
    assert not {tuple(it.prompt) for it in warm} & {tuple(it.prompt) for it in measured}


@given(st.integers(1, 12_000))
def test_pieces_of_the_text_have_exactly_the_wanted_length(length):
    import random

    assert len(TextIds(Letters()).draw(length, random.Random(0))) == length


def test_pieces_of_the_text_are_text():
    import random

    ids = TextIds(Letters()).draw(200, random.Random(3))
    assert "".join(map(chr, ids)) in text()[:5000] * 2


def test_random_ids_are_in_the_vocabulary_and_not_special():
    import random

    ids = RandomIds(10, {0, 9}).draw(500, random.Random(0))
    assert set(ids) == set(range(1, 9))
    with pytest.raises(RequestError):
        RandomIds(2, {0, 1})


def test_words_are_about_as_many_as_tokens_wanted():
    import random

    assert len(Words().draw(400, random.Random(0)).split()) == 300


@given(st.integers(1, 64), st.integers(1, 80), st.integers(1, 4))
def test_prompts_of_a_group_share_their_beginning_and_keep_their_length(prefix, length, groups):
    one = workload(inputs=Fixed(length), shared_prefix=prefix, prefix_groups=groups)
    found = [it.prompt for it in one.requests(30, Arrivals())]
    assert {len(it) for it in found} == {length}
    shared = min(prefix, length - 1)
    assert len({tuple(it[:shared]) for it in found}) <= groups


def test_prefixes_differ_between_groups_and_prompts_behind_them():
    found = [it.prompt for it in workload(shared_prefix=8, prefix_groups=3).requests(60, Arrivals())]
    assert len({tuple(it[:8]) for it in found}) == 3
    assert len({tuple(it) for it in found}) == 60


def trace(tmp_path, *lines):
    path = tmp_path / "trace.jsonl"
    path.write_text(
        "\n".join(it if isinstance(it, str) else json.dumps(it) for it in lines), encoding="utf-8"
    )
    return path


def test_a_trace_is_replayed_at_its_times(tmp_path):
    path = trace(
        tmp_path,
        {"input_len": 5, "output_len": 3, "arrival": 100.5},
        "",
        {"input_length": 7, "output_length": 2, "timestamp": 101_000, "hash_ids": [1]},
        {"prompt": "hello", "output_len": 1, "arrival": 102},
    )
    found = workload().replay(read_trace(path), Arrivals())
    assert [it.arrival for it in found] == [0, 0.5, 1.5]
    assert [it.output_len for it in found] == [3, 2, 1]
    assert [len(it.prompt) for it in found] == [5, 7, 5]
    assert found[2].prompt == "hello"


def test_a_trace_without_times_or_whose_times_are_not_wanted_gets_planned_ones(tmp_path):
    path = trace(tmp_path, *[{"input_len": 5, "output_len": 3}] * 3)
    assert [it.arrival for it in workload().replay(read_trace(path), Arrivals())] == [0, 0, 0]
    timed = read_trace(trace(tmp_path, *[{"input_len": 5, "output_len": 3, "arrival": 1}] * 3))
    closed = Arrivals(rate=None, concurrency=1)
    assert [it.arrival for it in workload().replay(timed, closed, timed=False)] == [None] * 3


def test_only_the_wanted_lines_are_read(tmp_path):
    assert len(read_trace(trace(tmp_path, {"input_len": 1, "output_len": 1}, "not read"), most=1)) == 1


@pytest.mark.parametrize(
    "line",
    ["[]", "{", {"input_len": 0, "output_len": 1}, {"output_len": 1}, {"input_len": True, "output_len": 1},
     {"input_len": 1, "output_len": 1, "arrival": -1}, {"input_len": 1, "output_len": 1, "arrival": "x"},
     {"prompt": 3, "output_len": 1}],
    ids=str,
)  # fmt: skip
def test_a_wrong_line_is_named(tmp_path, line):
    with pytest.raises(RequestError, match="line 2"):
        read_trace(trace(tmp_path, {"input_len": 1, "output_len": 1}, line))


def test_an_empty_trace_is_refused(tmp_path):
    with pytest.raises(RequestError, match="empty"):
        read_trace(trace(tmp_path, "", ""))
