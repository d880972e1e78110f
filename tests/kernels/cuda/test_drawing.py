"""Tokens drawn by the executor are the sampler's own, feed the next step, and are captured with it."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from optpipe.errors import RequestError
from optpipe.targets.protocol import Draws
from optpipe_kernels.cuda.target import CudaTarget
from optpipe_runtime.engine import Engine, EngineConfig
from optpipe_runtime.sampling import SamplingParams, uniform
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


def test_the_engine_draws_what_it_would_have_sampled(tiny):
    random = np.random.default_rng(2)
    asked = [random.integers(0, 250, length).tolist() for length in (3, 9, 5)]
    params = [
        SamplingParams(temperature=it.temperature, top_k=it.top_k, top_p=it.top_p, seed=n, max_tokens=4)
        for n, it in enumerate(PARAMS)
    ]
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
        assert any(fed and drawn for drawn, fed in early) == draws
    assert texts[0] == texts[1]


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
