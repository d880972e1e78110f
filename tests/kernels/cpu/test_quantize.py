import numpy as np
import pytest

from optpipe.errors import KernelError
from optpipe_kernels.cpu.pack import quantized_bytes


def parts(q, inputs):
    groups = -(-inputs // 32)
    rest = q[:, 32 * groups : 44 * groups].copy()
    return (
        q[:, : 32 * groups].view(np.int8).reshape(-1, groups, 32),
        rest[:, : 4 * groups].view(np.float32),
        rest[:, 4 * groups : 8 * groups].view(np.int32),
        rest[:, 8 * groups :].view(np.float32),
    )


@pytest.mark.parametrize("inputs", [1, 31, 32, 33, 100, 576, 1536])
def test_rounds_each_group_of_32(library, pools, rng, rounded, inputs):
    wide = rng.normal(size=(5, inputs + 3)).astype(np.float32)
    x = wide[:, :inputs]  # rows that do not touch
    for threads, pool in pools.items():
        q = np.full((5, quantized_bytes(inputs)), 77, np.uint8)
        library.call("quantize", [x, q], pool=pool)
        codes, scale, offset, total = parts(q, inputs)
        expected, expected_scale = rounded(x)
        np.testing.assert_array_equal(codes, expected, err_msg=f"{threads = }")
        np.testing.assert_array_equal(scale, expected_scale)
        np.testing.assert_array_equal(offset, -8 * expected.sum(-1))
        np.testing.assert_array_equal(total, scale * expected.sum(-1, dtype=np.float32))


def test_a_group_of_zeros_is_zeros(quantize):
    codes, scale, offset, total = parts(quantize(np.zeros((1, 40), np.float32)), 40)
    assert not codes.any() and not scale.any() and not offset.any() and not total.any()


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_shows_in_its_group_alone(quantize, odd):
    x = np.ones((1, 96), np.float32)
    x[0, 40] = odd
    _, scale, _, _ = parts(quantize(x), 96)
    np.testing.assert_array_equal(np.isnan(scale[0]), [False, True, False])


def test_refuses_a_row_that_is_too_short(library):
    with pytest.raises(KernelError, match=r"quantize: operand 1 must be u8 \[1, 64\]"):
        library.call("quantize", [np.zeros((1, 32), np.float32), np.zeros((1, 32), np.uint8)])
