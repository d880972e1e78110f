from __future__ import annotations

import torch
import triton
import triton.language as tl

from optpipe_kernels.triton.launch import Launch
from optpipe_kernels.triton.uniform import uniform as on_device
from optpipe_runtime.sampling import uniform


@triton.jit
def uniform_kernel(seed_ptr, index_ptr, attempt_ptr, out_ptr, count, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    inside = at < count
    seed = tl.load(seed_ptr + at, mask=inside, other=0).to(tl.uint64, bitcast=True)
    index = tl.load(index_ptr + at, mask=inside, other=0).to(tl.uint64, bitcast=True)
    attempt = tl.load(attempt_ptr + at, mask=inside, other=0).to(tl.uint64, bitcast=True)
    tl.store(out_ptr + at, on_device(seed, index, attempt), mask=inside)


def test_equals_the_cpu_samplers_numbers(device):
    seeds = [0, 1, -1, 2**63 - 1, -(2**63), 123456789]
    indices, attempts = [0, 5, 7, 1, 2**40, 3], [0, 0, 1, 2, 3, 4]
    numbers = (torch.tensor(it, device=device) for it in (seeds, indices, attempts))
    found = torch.empty(6, dtype=torch.float64, device=device)
    Launch(uniform_kernel, (1, 1, 1), (*numbers, found, 6), {"BLOCK": 8}, num_stages=1).run()
    assert found.tolist() == [uniform(*it) for it in zip(seeds, indices, attempts, strict=True)]
