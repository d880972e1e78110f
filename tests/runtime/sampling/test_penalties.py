"""Penalties over a long text."""

from __future__ import annotations

import numpy as np

from optpipe_runtime.sampling import SamplingParams
from optpipe_runtime.sampling.penalties import Penalties

from .reference import edited


def test_hundreds_of_distinct_tokens() -> None:
    rng = np.random.default_rng(0)
    params = SamplingParams(repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.2)
    prompt, output = rng.integers(0, 500, 90).tolist(), rng.integers(0, 500, 400).tolist()
    penalties = Penalties(params, prompt, 500)
    for token in output:
        penalties.advance(token)
    row = rng.standard_normal(500).astype(np.float32)
    expected = edited(row, params, prompt, output, [])
    penalties.apply(row)
    assert np.allclose(row, expected, rtol=1e-5, atol=1e-6)


def test_prompt_tokens_past_the_logits_do_not_matter() -> None:
    penalties = Penalties(SamplingParams(repetition_penalty=2.0), [1, 7], 4)
    row = np.ones(4, dtype=np.float32)
    penalties.apply(row)
    assert row.tolist() == [1.0, 0.5, 1.0, 1.0]
