from __future__ import annotations

import torch

from optpipe_kernels.triton.uniform import uniforms
from optpipe_runtime.sampling import uniform


def test_equals_the_cpu_samplers_numbers(device):
    seeds = [0, 1, -1, 2**63 - 1, -(2**63), 123456789]
    indices, attempts = [0, 5, 7, 1, 2**40, 3], [0, 0, 1, 2, 3, 4]
    found = uniforms(*(torch.tensor(it, device=device) for it in (seeds, indices, attempts)))
    assert found.tolist() == [uniform(*it) for it in zip(seeds, indices, attempts, strict=True)]
