import numpy as np
import pytest
import torch

from optpipe.dialect.layer_norm import layer_norm
from optpipe.testing import tolerance
from optpipe_kernels.cpu.pack import quantized_bytes


def reference(x, w, bias):
    x, w, bias = (
        None if it is None else torch.from_numpy(np.ascontiguousarray(it)).double() for it in (x, w, bias)
    )
    return layer_norm(x, w, bias, eps=1e-5).numpy()


@pytest.mark.parametrize("width", [2, 12, 16, 33, 576])
@pytest.mark.parametrize("factors", ["both", "weight", "bias", "none"])
def test_equals_the_dialect(run, randn, width, factors):
    x = randn(5, width + 4)[:, :width] + 3  # a mean that is not 0
    w = randn(width) if factors in ("both", "weight") else None
    bias = randn(width) if factors in ("both", "bias") else None
    found = run("layer_norm", [x, w, bias], [x.shape, None], (), (1e-5,))[0]
    np.testing.assert_allclose(found, reference(x, w, bias), **tolerance("float32"))


def test_rounds_what_it_would_have_written(run, randn, quantize):
    x, w, bias = randn(4, 70), randn(70), randn(70)
    out = run("layer_norm", [x, w, bias], [x.shape, None], (), (1e-5,))[0]
    q = run("layer_norm", [x, w, bias], [None, ((4, quantized_bytes(70)), np.uint8)], (), (1e-5,))[1]
    np.testing.assert_array_equal(q[:, : 3 * 44], quantize(out)[:, : 3 * 44])


def test_a_row_has_the_same_bits_alone(run, randn):
    x = randn(9, 100)
    together = run("layer_norm", [x, None, None], [x.shape, None], (), (1e-5,))[0]
    for t in range(9):
        alone = run("layer_norm", [x[t : t + 1], None, None], [(1, 100), None], (), (1e-5,))[0]
        np.testing.assert_array_equal(alone, together[t : t + 1])
