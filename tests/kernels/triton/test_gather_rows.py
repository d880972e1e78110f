from __future__ import annotations

import torch

from optpipe_kernels.triton.gather_rows import gather_rows


def test_rows_of_a_wider_matrix(place):
    x = torch.randn(9, 1503, **place)[:, :1500]
    rows = torch.tensor([3, 0, 8, 8], device=x.device)
    assert torch.equal(gather_rows(x, rows), x[rows])
    assert torch.equal(gather_rows(x, rows.int()), x[rows])


def test_rows_outside_are_zero(place):
    x = torch.randn(3, 5, **place)
    found = gather_rows(x, torch.tensor([-1, 1, 3], device=x.device))
    assert torch.equal(found, torch.stack([torch.zeros_like(x[0]), x[1], torch.zeros_like(x[0])]))


def test_no_rows(device):
    assert gather_rows(
        torch.ones(3, 4, device=device), torch.empty(0, dtype=torch.int64, device=device)
    ).shape == (0, 4)
