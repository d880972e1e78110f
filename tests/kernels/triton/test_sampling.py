from __future__ import annotations

import itertools
from functools import partial

import numpy as np
import pytest
import torch

from optpipe_kernels.triton.draws import Draw, settings
from optpipe_kernels.triton.sampling import NONE_LEFT, NOT_NUMBERS, sample
from optpipe_runtime.sampling import SamplingParams, uniform
from optpipe_runtime.sampling.choice import choose
from optpipe_runtime.sampling.mask import Scratch


def draws_of(params, seed, index):
    return Draw(params.temperature, params.top_k, params.top_p, params.min_p, seed, index)


@pytest.mark.parametrize("size", [7, 20000])
def test_the_tokens_are_the_cpu_samplers(device, size):
    rng = np.random.default_rng(size)
    rows, draws, expected = [], [], []
    cases = itertools.product((0, 2, 50, size - 1, 5000), (1.0, 0.9, 0.1), (0.0, 0.05))
    for case, (top_k, top_p, min_p) in enumerate(cases):
        row = (rng.normal(size=size) * 3).astype(np.float32)
        if case % 3 == 0:  # many equal values
            row = np.round(row)
        if case % 5 == 0:  # a mask
            row[rng.integers(1, size, size // 2)] = -np.inf
        temperature = (0.5, 1.0, 1.7)[case % 3]
        seed, index = int(rng.integers(-(2**62), 2**62)), case
        params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
        rows.append(row)
        draws.append(draws_of(params, seed, index))
        expected.append(choose(row, params, partial(uniform, seed, index), Scratch(size)))
    logits = torch.from_numpy(np.stack(rows)).to(device)
    assert sample(logits, settings(draws, device)).tolist() == expected


def test_ties_at_every_threshold_go_to_the_lower_ids(device):
    logits = torch.zeros(6, 60, device=device)
    draws = [Draw(top_k=2, seed=seed) for seed in range(4)] + [Draw(top_p=0.05, seed=seed) for seed in (0, 1)]
    found = sample(logits, settings(draws, device)).tolist()
    assert set(found[:4]) == {0, 1}
    assert set(found[4:]) <= {0, 1, 2}


def test_the_likeliest_of_equals_is_the_first(device):
    logits = torch.tensor([[1.0, 3.0, 3.0], [-1.0, -0.0, 0.0]], device=device)
    draws = [Draw(temperature=0.0), Draw(top_k=1)]
    assert sample(logits, settings(draws, device)).tolist() == [1, 1]


def test_rows_that_no_token_can_be_chosen_from(device):
    logits = torch.zeros(3, 10, device=device)
    logits[0, 3], logits[1, 9], logits[2] = torch.nan, torch.inf, -torch.inf
    for draw in (Draw(), Draw(temperature=0.0), Draw(top_k=3)):
        found = sample(logits, settings([draw] * 3, device)).tolist()
        assert found == [NOT_NUMBERS, NOT_NUMBERS, NONE_LEFT]


def test_rows_do_not_depend_on_each_other(device):
    logits = torch.randn(6, 500, device=device)
    draws = [Draw(top_k=k, top_p=0.8, seed=k) for k in (0, 3, 9, 0, 1, 499)]
    together = sample(logits, settings(draws, device)).tolist()
    order = [3, 1, 5, 0, 4, 2]
    mixed = sample(logits[order], settings([draws[i] for i in order], device)).tolist()
    assert [mixed[order.index(i)] for i in range(6)] == together


def test_half_precision_logits(device):
    logits = torch.randn(4, 1000, device=device).half()
    draws = [Draw(top_k=20, top_p=0.9, seed=i) for i in range(4)]
    chosen = settings(draws, device)
    assert sample(logits, chosen).tolist() == sample(logits.float(), chosen).tolist()
