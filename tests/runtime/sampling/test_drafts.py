"""Speculation never changes the text: exact rejection sampling of drafts that are certain (q = 1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from optpipe_runtime.sampling import Group, Sampled, Sampler, SamplingParams, TokenLogprobs

from . import reference
from .test_sampler import FIELDS, WORDS

SIZE = 9
PROMPT = (1, 2)


def model(tokens: Sequence[int]) -> NDArray[np.float32]:
    """Logits that depend on the last two tokens and on how many there are."""
    rng = np.random.default_rng([*tokens[-2:], len(tokens) % 5])
    return (rng.standard_normal(SIZE) * 1.5).astype(np.float32)


Proposer = Callable[[Sequence[int]], tuple[int, ...]]


def run(
    params: SamplingParams, propose: Proposer, *, seed: int, length: int, **fields: object
) -> list[Sampled]:
    """Generate ``length`` tokens or up to the end; one result a step."""
    sampler = Sampler(SIZE)
    state = sampler.state(params, PROMPT, eos=[0], seed=seed, **fields)  # type: ignore[arg-type]
    tokens = list(PROMPT)
    found: list[Sampled] = []
    while len(tokens) < len(PROMPT) + length and state.finish is None:
        drafts = propose(tokens)
        rows = [model([*tokens, *drafts[:i]]) for i in range(len(drafts) + 1)]
        (step,) = sampler.sample(np.stack(rows), [Group(state, drafts)])
        found.append(step)
        tokens += step.tokens
    return found


def joined(steps: list[Sampled]) -> tuple[list[int], list[TokenLogprobs], str | None]:
    logprobs = [one for step in steps for one in step.logprobs or ()]
    return [token for step in steps for token in step.tokens], logprobs, steps[-1].finish


def proposer(kind: str, text: list[int], seed: int) -> Proposer:
    """Drafts that are right, wrong, sometimes right, empty, or go on past the end."""
    rng = np.random.default_rng(seed)

    def propose(tokens: Sequence[int]) -> tuple[int, ...]:
        place = len(tokens) - len(PROMPT)
        count = int(rng.integers(0, 5)) if kind != "right" else 4
        true = (text[place : place + count] + [1] * count)[:count]
        if kind == "wrong":
            return tuple((it + 1) % SIZE for it in true)
        if kind == "mixed":
            return tuple(it if rng.random() < 0.7 else int(rng.integers(SIZE)) for it in true)
        return tuple(true)

    return propose


@settings(max_examples=200, deadline=None)
@given(FIELDS, WORDS, st.sampled_from(["right", "wrong", "mixed"]), st.integers(0, 1000), st.booleans())
def test_text_with_drafts_is_text_without(
    fields: dict[str, object], words: tuple[tuple[int, ...], ...], kind: str, seed: int, logprobs: bool
) -> None:
    params = SamplingParams(**fields, max_tokens=14, logprobs=2 if logprobs else None)  # type: ignore[arg-type]
    plain = joined(run(params, lambda tokens: (), seed=seed, length=14, bad_words=words))
    propose = proposer(kind, plain[0], seed)
    assert joined(run(params, propose, seed=seed, length=14, bad_words=words)) == plain


def test_right_drafts_are_all_accepted_and_wrong_ones_are_not() -> None:
    params = SamplingParams(ignore_eos=True)
    plain = joined(run(params, lambda tokens: (), seed=3, length=20))[0]
    right = run(params, proposer("right", plain, 0), seed=3, length=20)
    assert [len(step.tokens) for step in right[:-1]] == [5] * (len(right) - 1)
    wrong = run(params, lambda tokens: ((plain[len(tokens) - 2] + 1) % SIZE,), seed=3, length=20)
    assert {len(step.tokens) for step in wrong} == {1}


@pytest.mark.parametrize("fields", [{"ignore_eos": False}, {"ignore_eos": True, "stop_token_ids": (0,)}])
def test_nothing_is_sampled_past_an_end_token(fields: dict[str, object]) -> None:
    sampler = Sampler(SIZE)
    params = SamplingParams(temperature=0.0, **fields)  # type: ignore[arg-type]
    ids = np.asarray([5, 0, 6, 7], dtype=np.int64)
    logits = np.eye(SIZE, dtype=np.float32)[ids]
    for found in (
        sampler.sample(logits, [Group(sampler.state(params, [1], eos=[0], seed=0), (5, 0, 6))]),
        sampler.sample_greedy(ids, [Group(sampler.state(params, [1], eos=[0], seed=0), (5, 0, 6))]),
    ):
        assert found[0].tokens == (5, 0) and found[0].finish == "stop"


def test_nothing_is_sampled_past_max_tokens() -> None:
    sampler = Sampler(SIZE)
    state = sampler.state(SamplingParams(temperature=0.0, max_tokens=2), [1], eos=[], seed=0)
    (found,) = sampler.sample_greedy(np.asarray([5, 6, 7]), [Group(state, (5, 6))])
    assert found.tokens == (5, 6) and found.finish == "length"


def test_groups_of_different_lengths_share_a_step() -> None:
    sampler = Sampler(SIZE)
    params = SamplingParams(temperature=0.0)
    states = [sampler.state(params, [1], eos=[], seed=0) for _ in range(3)]
    groups = [Group(states[0], (5, 6)), Group(states[1]), Group(states[2], (3,))]
    ids = np.asarray([5, 1, 2, 8, 4, 4], dtype=np.int64)
    greedy = sampler.sample_greedy(ids, groups)
    assert [it.tokens for it in greedy] == [(5, 1), (8,), (4,)]
    assert [it.outputs for it in states] == [2, 1, 1]


@pytest.mark.parametrize("kind", ["right", "wrong", "mixed"])
@pytest.mark.parametrize(
    "fields", [{}, {"top_p": 0.8, "temperature": 1.3}, {"top_k": 4, "frequency_penalty": 1.0}]
)
def test_frequencies_with_drafts_converge_to_the_probabilities(kind: str, fields: dict[str, float]) -> None:
    params = SamplingParams(**fields)
    first, second = 5, 6  # the draft; tokens behind it are judged where it was accepted, and the first always
    drafted = {"right": int(model(PROMPT).argmax()), "wrong": int(model(PROMPT).argmin()), "mixed": first}[
        kind
    ]
    sampler = Sampler(SIZE)
    logits = np.stack([model(PROMPT), model([*PROMPT, drafted]), model([*PROMPT, drafted, second])])
    counts = np.zeros((2, SIZE), dtype=np.int64)
    for seed in range(4000):
        state = sampler.state(params, PROMPT, eos=[], seed=seed)
        (found,) = sampler.sample(logits, [Group(state, (drafted, second))])
        counts[0, found.tokens[0]] += 1
        if found.tokens[0] == drafted:
            counts[1, found.tokens[1]] += 1
    for row, output in enumerate([[], [drafted]]):
        edited = reference.edited(logits[row], params, PROMPT, output, [])
        expected = reference.probabilities(edited, params) * counts[row].sum()
        statistic, freedom = reference.chi_square(counts[row], expected)
        assert statistic < reference.chi_square_limit(freedom)
    assert counts[1].sum() == counts[0, drafted]
