"""Tokens drawn by the executor are the sampler's own, feed the next step, and are captured with it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from optpipe.errors import RequestError
from optpipe.targets.protocol import Draws
from optpipe_kernels.cuda.target import CudaTarget
from optpipe_runtime.engine import Engine, EngineConfig
from optpipe_runtime.sampling import Group, RowState, Sampler, SamplingParams, uniform
from optpipe_runtime.sampling import draws_of as sampler_draws
from optpipe_runtime.sampling.choice import choose, likeliest
from optpipe_runtime.sampling.mask import Scratch

TOKENS = np.random.default_rng(0).integers(0, 250, 70)
PARAMS = (
    SamplingParams(temperature=0.9, top_k=20, seed=4),
    SamplingParams(temperature=1.4, top_p=0.8, min_p=0.02, seed=-7),
    SamplingParams(temperature=0),
)


def load(artifact, **options):
    options = {"device": "cpu", "batch_invariant": False, **options}
    return CudaTarget().load_artifact(artifact, **options)


def draws_of(indices):
    """Of the three parameters, each at an index of its output."""
    floor = [it.temperature * np.log(it.min_p) if it.min_p else -np.inf for it in PARAMS]
    floats = [(it.temperature, it.top_p, low) for it, low in zip(PARAMS, floor, strict=True)]
    integers = [
        (1 if it.greedy else it.top_k, it.seed or 0, at) for it, at in zip(PARAMS, indices, strict=True)
    ]
    return Draws(np.array(floats), np.array(integers, dtype=np.int64))


def chosen(row, params, index):
    if params.greedy:
        return likeliest(row)
    return choose(row, params, partial(uniform, params.seed, index), Scratch(len(row)))


GPU = pytest.param(
    "cuda",
    marks=(pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")),
)


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_the_tokens_are_the_samplers_of_the_same_logits(tiny, sequences, device):
    executor = load(tiny("llama"), device=device)
    assert executor.draws_tokens
    steps = sequences(executor, [TOKENS[:20], TOKENS[20:40], TOKENS[40:60]])
    step = steps.step([(b, 0, 12) for b in range(3)], rows=[11, 23, 35])
    logits = executor.submit(step).result().logits
    for index in (0, 3):
        result = executor.submit(step, logits=False, draws=draws_of([index] * 3)).result()
        expected = [chosen(row, it, index) for row, it in zip(logits, PARAMS, strict=True)]
        assert result.token_ids.tolist() == expected
        assert result.logits is None


def decoded(executor, sequences, recorder, count):
    """``count`` drawn tokens of three sequences, each step fed by the one before."""
    steps = sequences(executor, [TOKENS[:5], TOKENS[20:25], TOKENS[40:45]], length=5 + count)
    first = steps.step([(b, 0, 5) for b in range(3)], rows=[4, 9, 14])
    found = [executor.submit(first, logits=False, draws=draws_of([0] * 3))]
    for at in range(1, count):
        step = steps.step([(b, 4 + at, 5 + at) for b in range(3)], feed={b: b for b in range(3)})
        found.append(executor.submit(step, logits=False, draws=draws_of([at] * 3)))
    return np.array([it.result().token_ids for it in found])


def test_drawn_tokens_feed_the_next_step_captured_or_not(tiny, sequences, recorder):
    plain, captured = (decoded(load(tiny("llama"), recorder=it), sequences, it, 4) for it in (None, recorder))
    np.testing.assert_array_equal(plain, captured)
    assert recorder.recorded == 1  # one bucket
    assert recorder.replayed == 3
    assert len(np.unique(plain[:, :2])) > 3


def test_a_bucket_has_a_graph_for_each_way_to_take_tokens(tiny, sequences, recorder):
    executor = load(tiny("llama"), recorder=recorder)
    steps = sequences(executor, [TOKENS[:20]] * 3)
    steps.run([(b, 0, 18) for b in range(3)])
    one = steps.step([(b, 18, 19) for b in range(3)])
    logits = executor.submit(one).result().logits
    greedy = executor.submit(one, logits=False).result().token_ids
    drawn = executor.submit(one, logits=False, draws=draws_of([5] * 3)).result().token_ids
    assert executor.graphs == 3
    assert greedy.tolist() == logits.argmax(-1).tolist()
    assert drawn.tolist() == [chosen(row, it, 5) for row, it in zip(logits, PARAMS, strict=True)]


@pytest.mark.parametrize("rules", [False, True])
def test_the_engine_draws_what_it_would_have_sampled(tiny, rules):
    random = np.random.default_rng(2)
    asked = [random.integers(0, 250, length).tolist() for length in (3, 9, 5)]
    params = [
        SamplingParams(temperature=it.temperature, top_k=it.top_k, top_p=it.top_p, seed=n, max_tokens=4)
        for n, it in enumerate(PARAMS)
    ]
    if rules:
        params[1] = replace(params[1], frequency_penalty=0.6, allowed_token_ids=tuple(range(100)))
    texts = []
    for draws in (False, True):
        executor = load(tiny("llama"), dtype="f32")
        if not draws:
            executor.operations.__class__ = type("Host", (type(executor.operations),), {"draws": False})
        submitted, early = executor.submit, []

        def submit(step, submitted=submitted, early=early, **options):
            early.append(("draws" in options, int(step.token_ids.min()) < 0))
            return submitted(step, **options)

        executor.submit = submit
        config = EngineConfig(num_blocks=16, max_num_seqs=4, max_num_batched_tokens=32, seed=1)
        with Engine.over(executor, None, config=config, eos=()) as engine:
            handles = [engine.submit(it, one) for it, one in zip(asked, params, strict=True)]
            texts.append([it.result().completions[0].token_ids for it in handles])
        assert any(it for it, _ in early) == draws
        if not rules:  # else only as long as the one whose rules change is not there yet
            assert any(fed and drawn for drawn, fed in early) == draws
        assert all(drawn for drawn, _ in early) == draws
    assert texts[0] == texts[1]


RULES = (
    {"repetition_penalty": 1.3, "frequency_penalty": 0.5},
    {"logit_bias": {5: 4.0, 9: -3.0}, "logprobs": 3, "min_tokens": 40},
    {"logprobs": 1, "allowed_token_ids": tuple(range(0, 250, 3))},
)


def ruled(executor, index):
    """States with rules, ``index`` tokens in."""
    with Sampler(executor.vocab_size) as sampler:
        found = [
            sampler.state(replace(it, **rules), [1, 2, 3, 3], eos=[7, 8], seed=it.seed or 0)
            for it, rules in zip(PARAMS, RULES, strict=True)
        ]
    for state in found:
        for token in range(index):
            state.advance(3 * token)
    return found


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_rules_and_log_probabilities_are_the_samplers_captured_or_not(tiny, sequences, recorder, device):
    plain = load(tiny("llama"), device=device, cuda_graphs=False)
    captured = load(tiny("llama"), device=device, recorder=recorder if device == "cpu" else None)
    for executor in (plain, captured):
        steps = sequences(executor, [TOKENS[:20], TOKENS[20:40], TOKENS[40:60]])
        steps.run([(b, 0, 12) for b in range(3)])
        for index in (0, 4):
            step = steps.step([(b, 12, 13) for b in range(3)])
            draws = sampler_draws(ruled(executor, index))
            assert draws.edits is not None and draws.top == 3
            given = executor.submit(step, logits=False, draws=draws).result()
            told = executor.submit(step).result()
            drawn_and_told = executor.submit(step, draws=draws).result()
            np.testing.assert_array_equal(drawn_and_told.logits, told.logits)
            np.testing.assert_array_equal(drawn_and_told.token_ids, given.token_ids)
            assert given.logits is None and told.logprobs is None
            with Sampler(executor.vocab_size) as sampler:
                by_host = sampler.sample(told.logits, [Group(it) for it in ruled(executor, index)])
                groups = [Group(it) for it in ruled(executor, index)]
                here = sampler.sample_greedy(given.token_ids, groups, given.logprobs)
            assert [it.tokens for it in here] == [it.tokens for it in by_host]
            assert [bool(it.logprobs) for it in here] == [False, True, True]
            for mine, its in zip(here[1:], by_host[1:], strict=True):
                (mine,), (its,) = mine.logprobs, its.logprobs
                assert mine.logprob == pytest.approx(its.logprob, abs=2e-6)
                assert [it for it, _ in mine.top] == [it for it, _ in its.top]
                assert [it for _, it in mine.top] == pytest.approx([it for _, it in its.top], abs=2e-6)
    assert (plain.graphs, captured.graphs) == (0, 1)  # the graph is that of any step whose logits are wanted


def test_a_token_drawn_by_rules_feeds_the_next_step(tiny, sequences, recorder):
    for given in (None, recorder):
        executor = load(tiny("llama"), recorder=given)
        steps = sequences(executor, [TOKENS[:20]], length=21)
        steps.run([(0, 0, 18)])
        one, two = steps.step([(0, 18, 19)]), steps.step([(0, 19, 20)], feed={0: 0})
        state = RowState(
            SamplingParams(temperature=0, logit_bias={int(TOKENS[19]): 100.0}),
            [1], vocab_size=executor.vocab_size, eos=(), seed=0,
        )  # fmt: skip
        drawn = executor.submit(one, logits=False, draws=sampler_draws([state]))
        fed = executor.submit(two).result().logits
        assert drawn.result().token_ids.tolist() == [TOKENS[19]]
        np.testing.assert_array_equal(fed, steps.run([(0, 19, 20)]))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tokens": np.array([5, 9999], np.int32)}, "outside the vocabulary"),
        ({"tokens": np.array([-1, 5], np.int32)}, "outside the vocabulary"),
        ({"starts": np.array([0, 1], np.int32)}, "do not divide their 2 tokens"),
        ({"counts": np.zeros(3, np.float32)}, r"have counts \(3,\)"),
        ({"masked": np.array([0], np.int32)}, "take mask 0 of 0"),
        ({"masks": np.zeros((1, 2), np.int32)}, "bits for 64 of"),
    ],
    ids=str,
)
def test_edits_that_would_touch_what_is_not_theirs_are_refused(tiny, sequences, wrong, message):
    executor = load(tiny("llama"))
    step = sequences(executor, [TOKENS[:5]]).step([(0, 0, 5)], rows=[4])
    state = RowState(
        SamplingParams(logit_bias={5: 1.0, 9: 1.0}), [1], vocab_size=executor.vocab_size, eos=(), seed=0
    )
    draws = sampler_draws([state])
    with pytest.raises(RequestError, match=message):
        executor.submit(step, draws=replace(draws, edits=replace(draws.edits, **wrong)))
    with pytest.raises(RequestError, match="0 to 32 can be told"):
        executor.submit(step, draws=replace(draws, top=33))


def test_draws_that_do_not_fit_are_refused(tiny, sequences):
    executor = load(tiny("llama"), kernels="bodies")
    step = sequences(executor, [TOKENS[:5]]).step([(0, 0, 5)], rows=[4])
    assert not executor.draws_tokens
    with pytest.raises(RequestError, match="no kernel for it"):
        executor.submit(step, logits=False, draws=draws_of([0] * 3))
    executor = load(tiny("llama"))
    sequences(executor, [TOKENS[:5]])
    with pytest.raises(RequestError, match="1 logit rows has draws for 3 and 3"):
        executor.submit(step, logits=False, draws=draws_of([0] * 3))
