"""``rms_norm`` against torch's own."""

import pytest
import torch
import torch.nn.functional as F

from optpipe.dialect.rms_norm import rms_norm
from optpipe.testing import tolerance


@pytest.mark.parametrize("shape", [(1, 8), (5, 7), (2, 3, 24), (1, 1)], ids=str)
@pytest.mark.parametrize("eps", [1e-6, 0.5])
def test_is_torchs_rms_norm(randn, shape, eps):
    x, weight = randn(*shape), randn(shape[-1])
    torch.testing.assert_close(
        rms_norm(x, weight, eps=eps), F.rms_norm(x, shape[-1:], weight, eps), **tolerance("float32")
    )
    torch.testing.assert_close(
        rms_norm(x, None, eps=eps), F.rms_norm(x, shape[-1:], None, eps), **tolerance("float32")
    )


def test_a_unit_offset_is_added_to_the_weight(randn):
    x, weight = randn(3, 8), randn(8)
    expected = F.rms_norm(x, (8,), weight + 1, 1e-6)
    torch.testing.assert_close(
        rms_norm(x, weight, eps=1e-6, unit_offset=True), expected, **tolerance("float32")
    )


def test_without_a_weight_the_unit_offset_is_nothing(randn):
    x = randn(3, 8)
    assert rms_norm(x, None, eps=1e-6, unit_offset=True).equal(rms_norm(x, None, eps=1e-6))


def test_large_bfloat16_rows_do_not_overflow(randn):
    x = randn(2, 64, dtype=torch.float16) * 1000  # the squares are past float16's 65504
    assert rms_norm(x, None, eps=1e-6).isfinite().all()


def test_a_row_of_zeros_stays_zero():
    assert rms_norm(torch.zeros(1, 4), torch.ones(4), eps=1e-6).eq(0).all()
