"""``layer_norm`` against torch's own."""

import pytest
import torch
import torch.nn.functional as F

from optpipe.dialect.layer_norm import layer_norm
from optpipe.testing import tolerance


@pytest.mark.parametrize("shape", [(1, 8), (5, 7), (2, 3, 24)], ids=str)
@pytest.mark.parametrize("parts", ["weight and bias", "weight", "bias", "nothing"])
def test_is_torchs_layer_norm(randn, shape, parts):
    x = randn(*shape) + 3
    weight = randn(shape[-1]) if "weight" in parts else None
    bias = randn(shape[-1]) if "bias" in parts else None
    expected = F.layer_norm(x, shape[-1:], weight, bias, 1e-5)
    torch.testing.assert_close(layer_norm(x, weight, bias, eps=1e-5), expected, **tolerance("float32"))


def test_a_weight_may_differ_by_head(randn):
    x, weight = randn(5, 3, 8), randn(3, 8)
    expected = torch.stack([F.layer_norm(x[:, h], (8,), weight[h], None, 1e-5) for h in range(3)], 1)
    torch.testing.assert_close(layer_norm(x, weight, None, eps=1e-5), expected, **tolerance("float32"))


def test_a_large_mean_does_not_cost_the_variance(randn):
    x = randn(4, 64)
    found = layer_norm(x + 1024, None, None, eps=1e-5)
    expected = F.layer_norm((x + 1024).double(), (64,), None, None, 1e-5).float()
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-4)  # 1024 keeps 2^-13 of x's fraction
