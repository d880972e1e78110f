from __future__ import annotations

import pytest
import torch

from optpipe_kernels.triton.finish_logits import finish_logits


@pytest.mark.parametrize("cap", [None, 30.0])
@pytest.mark.parametrize("factor", [1.0, 0.25])
def test_equals_the_operations_in_float32(place, cap, factor):
    x = torch.randn(3, 5003, **place)[:, :5000] * 40
    expected = x.float() * factor
    if cap is not None:
        expected = cap * torch.tanh(expected / cap)
    found = finish_logits(x, factor=factor, cap=cap)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=4e-6)


def test_no_rows(device):
    assert finish_logits(torch.empty(0, 9, device=device)).shape == (0, 9)
