"""A step of several sequences."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from optpipe.errors import KernelError, RequestError
from optpipe_runtime.sampling import Group, RowState, Sampled, Sampler, SamplingParams, uniform

from . import reference

BIG = 40_009
CASES = (
    {"temperature": 0.0},
    {"temperature": 0.7},
    {"top_k": 20, "top_p": 0.9},
    {"top_p": 0.8, "logprobs": 3},
    {"min_p": 0.05},
    {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": -0.5},
    {"logit_bias": {5: 100.0, 7: -100.0}},
    {"allowed_token_ids": (3, 1, 77)},
)


def rows(count: int, size: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((count, size)).astype(np.float32) * 2


def state(sampler: Sampler, seed: int = 0, **fields: object) -> RowState:
    return sampler.state(SamplingParams(**fields), [1, 2, 3], eos=[0], seed=seed)  # type: ignore[arg-type]


def test_a_row_does_not_depend_on_the_batch_or_on_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optpipe_runtime.sampling.sampler.INLINE", 0)
    logits = rows(32, BIG)
    alone: list[Sampled] = []
    sampler = Sampler(BIG, threads=1)
    for i in range(32):
        alone += sampler.sample(logits[i : i + 1], [Group(state(sampler, i, **CASES[i % len(CASES)]))])
    for threads in (1, 2, 5):
        with Sampler(BIG, threads=threads) as several:
            groups = [Group(state(several, i, **CASES[i % len(CASES)])) for i in range(32)]
            assert several.sample(logits, groups) == alone
    order = np.random.default_rng(1).permutation(32)
    groups = [Group(state(sampler, int(i), **CASES[i % len(CASES)])) for i in order]
    assert sampler.sample(logits[order], groups) == [alone[i] for i in order]


def test_logits_stay_as_they_are() -> None:
    logits = rows(len(CASES), 101)
    before = logits.copy()
    sampler = Sampler(101)
    sampler.sample(logits, [Group(state(sampler, **fields)) for fields in CASES])
    assert np.array_equal(logits, before)


def test_another_seed_gives_another_text_and_the_same_seed_the_same() -> None:
    sampler = Sampler(1000)

    def text(seed: int) -> list[int]:
        one = state(sampler, seed)
        return [sampler.sample(rows(1, 1000, i), [Group(one)])[0].tokens[0] for i in range(20)]

    assert text(1) == text(1) != text(2)


def test_a_broken_row_ends_its_own_sequence_only() -> None:
    sampler = Sampler(50)
    logits = rows(3, 50)
    good = sampler.sample(logits[[0, 2]], [Group(state(sampler)) for _ in range(2)])
    logits[1, 9] = np.nan
    found = sampler.sample(logits, [Group(state(sampler)) for _ in range(3)])
    assert [found[0], found[2]] == good
    assert found[1].tokens == () and found[1].finish == "error" and isinstance(found[1].error, KernelError)


def test_rules_that_leave_no_token_are_an_error_of_the_request() -> None:
    sampler = Sampler(50)
    excluded = sampler.state(SamplingParams(allowed_token_ids=(4,)), [1], eos=[0], seed=0, bad_words=((4,),))
    (found,) = sampler.sample(rows(1, 50), [Group(excluded)])
    assert isinstance(found.error, RequestError) and "No token may come" in found.error.message


def test_greedy_needs_no_logits_and_takes_the_executors_tokens() -> None:
    sampler = Sampler(50)
    logits = rows(4, 50)
    groups = [Group(state(sampler, temperature=0.0)) for _ in range(4)]
    assert not any(it.state.needs_logits for it in groups)
    by_ids = sampler.sample_greedy(logits.argmax(axis=1), groups)
    assert by_ids == sampler.sample(logits, [Group(state(sampler, temperature=0.0)) for _ in range(4)])


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 1.0},
        {"logprobs": 0},
        {"min_tokens": 1},
        {"repetition_penalty": 1.1},
        {"frequency_penalty": 0.1},
        {"presence_penalty": 0.1},
        {"logit_bias": {1: 1.0}},
        {"allowed_token_ids": (1,)},
    ],
)
def test_whatever_can_change_the_likeliest_token_needs_logits(fields: dict[str, object]) -> None:
    assert state(Sampler(50), **{"temperature": 0.0, **fields}).needs_logits


def test_min_tokens_needs_logits_only_until_they_are_there() -> None:
    sampler = Sampler(50)
    one = state(sampler, temperature=0.0, min_tokens=2)
    for needs in (True, True, False):
        assert one.needs_logits is needs
        sampler.sample(rows(1, 50), [Group(one)])


def test_ends() -> None:
    sampler = Sampler(9)

    def take(token: int, **fields: object) -> Sampled:
        ids = np.asarray([token], dtype=np.int64)
        return sampler.sample_greedy(ids, [Group(state(sampler, temperature=0.0, **fields))])[0]

    assert take(0) == Sampled((0,), None, "stop", None)
    assert take(0, ignore_eos=True) == Sampled((0,), None, None, None)
    assert take(4, stop_token_ids=(4,)) == Sampled((4,), None, "stop", 4)
    assert take(0, ignore_eos=True, stop_token_ids=(0,)) == Sampled((0,), None, "stop", 0)
    assert take(4, max_tokens=1) == Sampled((4,), None, "length", None)
    assert take(0, max_tokens=1).finish == "stop"


def test_min_tokens_masks_end_tokens_and_stop_ids() -> None:
    sampler = Sampler(9)
    logits = rows(1, 9)
    logits[0, [0, 4]] = 50, 40
    one = state(sampler, temperature=0.0, min_tokens=2, stop_token_ids=(4,))
    tokens = [sampler.sample(logits, [Group(one)])[0].tokens[0] for _ in range(3)]
    assert not {0, 4} & set(tokens[:2]) and tokens[2] == 0 and one.finish == "stop"


FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.sampled_from([0.0, 0.5, 1.0, 3.0]),
        "top_k": st.integers(0, 12),
        "top_p": st.sampled_from([0.1, 0.5, 0.9, 1.0]),
        "min_p": st.sampled_from([0.0, 0.1, 0.9]),
        "repetition_penalty": st.sampled_from([0.5, 1.0, 2.0]),
        "presence_penalty": st.sampled_from([-1.0, 0.0, 2.0]),
        "frequency_penalty": st.sampled_from([-1.0, 0.0, 2.0]),
        "logit_bias": st.dictionaries(st.integers(0, 8), st.sampled_from([-100.0, -1.0, 2.0])),
        "allowed_token_ids": st.lists(st.integers(1, 8), min_size=1, max_size=8).map(tuple),
        "min_tokens": st.integers(0, 3),
        "stop_token_ids": st.lists(st.integers(5, 8), max_size=2).map(tuple),
    },
)
WORDS = st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple), max_size=3).map(tuple)


@settings(max_examples=300, deadline=None)
@given(FIELDS, WORDS, st.lists(st.integers(0, 8), min_size=1, max_size=4), st.integers(0, 99))
def test_every_combination_is_what_the_slow_way_gives(
    fields: dict[str, object], words: tuple[tuple[int, ...], ...], prompt: list[int], seed: int
) -> None:
    sampler = Sampler(9)
    params = SamplingParams(**fields)  # type: ignore[arg-type]
    one = sampler.state(params, prompt, eos=[0], seed=seed, bad_words=words)
    output: list[int] = []
    for index in range(6):
        logits = rows(1, 9, 10 * seed + index)
        row = reference.edited(logits[0], params, prompt, output, [0, *params.stop_token_ids], words)
        (found,) = sampler.sample(logits, [Group(one)])
        if not np.isfinite(row).any():
            assert found.finish == "error" and found.tokens == ()
            return
        (token,) = found.tokens
        if params.greedy:
            assert np.isclose(row[token], row.max(), rtol=1e-6)
        else:
            assert token in reference.acceptable(
                row, params, lambda attempt, i=index: uniform(seed, i, attempt)
            )
        output.append(token)
        if found.finish is not None:
            assert token in (0, *params.stop_token_ids)
            return
