from __future__ import annotations

import pytest
import torch

from optpipe.dialect import layer_norm as plain
from optpipe.testing import tolerance
from optpipe_kernels.triton.layer_norm import layer_norm, norm
from optpipe_kernels.triton.rows import quantized_rows


def near(found, expected):
    torch.testing.assert_close(found, expected, **tolerance(str(expected.dtype).removeprefix("torch.")))


@pytest.mark.parametrize("width", [1, 12, 33, 576])
@pytest.mark.parametrize("scaled", [False, True])
def test_equals_the_dialect(place, width, scaled):
    x = torch.randn(5, width, **place) * 4 + 2
    w, b = (torch.randn(width, **place), torch.randn(width, **place)) if scaled else (None, None)
    near(layer_norm(x, w, b, eps=1e-5), plain.layer_norm(x, w, b, eps=1e-5))


def test_a_weight_for_each_head(place):
    x = torch.randn(6, 5 * 20, **place)[:, 20:80].reshape(6, 3, 20)
    w, b = torch.randn(3, 20, **place), torch.randn(20, **place)
    near(layer_norm(x, w, b, eps=1e-6), plain.layer_norm(x, w, b, eps=1e-6))
    near(layer_norm(x[None], w, None, eps=1e-6), plain.layer_norm(x[None], w, None, eps=1e-6))


def test_a_large_mean_costs_no_digits(device):
    x = torch.randn(3, 300, device=device) + 1000
    expected = plain.layer_norm(x.double(), None, None, eps=1e-5).float()
    # The mean has an ulp of 1000, 6e-5; the mean of squares less the square of the mean would be off by 0.1.
    torch.testing.assert_close(layer_norm(x, None, None, eps=1e-5), expected, atol=5e-4, rtol=0)


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_the_sum_its_norm_and_codes(place, kind):
    x, residual, w = torch.randn(4, 50, **place), torch.randn(4, 50, **place), torch.randn(50, **place)
    found = norm(x, w, w, eps=1e-5, residual=residual, quantize=kind)
    assert torch.equal(found.total, (x.float() + residual.float()).to(x.dtype))
    near(found.out, plain.layer_norm(found.total, w, w, eps=1e-5))
    codes, scale = quantized_rows(found.out, kind)
    torch.testing.assert_close(found.scale, scale)
    assert (found.codes.float() != codes.float()).sum() <= (0 if x.device.type == "cpu" else 2)


def test_two_branches_are_added_to_the_residual(place):
    x, residual, second = (torch.randn(4, 50, **place) for _ in range(3))
    found = norm(x, None, None, eps=1e-5, residual=residual, second=second)
    near(found.total, (x.float() + residual.float() + second.float()).to(x.dtype))
    near(found.out, plain.layer_norm(found.total, None, None, eps=1e-5))


def test_a_row_has_the_same_bits_alone(place):
    x, w = torch.randn(9, 100, **place), torch.randn(100, **place)
    together = layer_norm(x, w, w, eps=1e-5)
    for t in range(9):
        assert torch.equal(layer_norm(x[t : t + 1], w, w, eps=1e-5)[0], together[t])
