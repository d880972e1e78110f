from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from optpipe_kernels.triton.logprobs import logprobs
from optpipe_runtime.sampling.logprobs import token_logprobs
from optpipe_runtime.sampling.mask import Scratch


@pytest.mark.parametrize(("size", "top"), [(5, 20), (1000, 0), (1000, 1), (9000, 20)])
def test_equals_the_cpu_samplers(device, size, top):
    rng = np.random.default_rng(0)
    rows = (rng.normal(size=(3, size)) * 4).astype(np.float32)
    rows[1] = np.round(rows[1])  # many equal values
    rows[2, ::2] = -np.inf
    tokens = [0, size - 1, 2]
    found, likeliest, ids = logprobs(
        torch.from_numpy(rows).to(device), torch.tensor(tokens, device=device), top
    )
    for row in range(3):
        expected = token_logprobs(rows[row], tokens[row], top, Scratch(size))
        assert float(found[row]) == pytest.approx(expected.logprob, abs=2e-6)  # float32 weights in the sum
        pairs = zip(ids[row].tolist(), likeliest[row].tolist(), strict=True)
        finite = [(token, value) for token, value in pairs if token >= 0]
        assert [token for token, _ in finite] == [token for token, _ in expected.top]
        assert [value for _, value in finite] == pytest.approx([value for _, value in expected.top], abs=2e-6)
        assert all(math.isinf(it) for it in likeliest[row, len(finite) :].tolist())


def test_a_row_that_is_not_numbers_gives_nan(device):
    rows = torch.zeros(2, 10, device=device)
    rows[0, 3] = torch.nan
    rows[1] = -torch.inf
    found, _, ids = logprobs(rows, torch.tensor([-2, -1], device=device), 2)  # as no token is drawn from them
    assert found.isnan().all()
    assert (ids == -1).all()
