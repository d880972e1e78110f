"""``add_rms_norm`` is an add and a norm."""

import pytest
import torch
import torch.nn.functional as F

from optpipe.dialect.add_rms_norm import add_rms_norm
from optpipe.dialect.rms_norm import rms_norm
from optpipe.testing import tolerance


@pytest.mark.parametrize("offset", [False, True])
def test_gives_the_norm_of_the_sum_and_the_sum(randn, offset):
    x, residual, weight = randn(5, 12), randn(5, 12), randn(12)
    normed, total = add_rms_norm(x, residual, weight, eps=1e-5, unit_offset=offset)
    assert total.equal(x + residual)
    expected = F.rms_norm(x + residual, (12,), weight + offset, 1e-5)
    torch.testing.assert_close(normed, expected, **tolerance("float32"))


def test_norms_the_sum_as_it_was_rounded(randn):
    """In bfloat16 the stream that is handed on and the one that is normed are the same numbers."""
    x, residual = randn(5, 12, dtype=torch.bfloat16), randn(5, 12, dtype=torch.bfloat16)
    normed, total = add_rms_norm(x, residual, None, eps=1e-5)
    assert total.dtype is normed.dtype is torch.bfloat16
    assert normed.equal(rms_norm(total, None, eps=1e-5))
