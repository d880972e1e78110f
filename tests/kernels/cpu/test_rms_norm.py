import numpy as np
import pytest
import torch

from optpipe.dialect.rms_norm import rms_norm
from optpipe.errors import KernelError
from optpipe.testing import tolerance
from optpipe_kernels.cpu.pack import quantized_bytes

WIDTHS = [1, 12, 16, 33, 576]


def reference(x, w, offset, eps=1e-5):
    weight = None if w is None else torch.from_numpy(w).double()
    return rms_norm(
        torch.from_numpy(np.ascontiguousarray(x)).double(), weight, eps=eps, unit_offset=offset
    ).numpy()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("offset", [False, True])
def test_equals_the_dialect(run, randn, width, offset):
    x, w = randn(5, width) * 4, randn(width)
    found = run("rms_norm", [x, w], [x.shape, None], (int(offset),), (1e-5,))[0]
    np.testing.assert_allclose(found, reference(x, w, offset), **tolerance("float32"))


def test_heads_inside_a_wider_row_and_no_weight(run, randn):
    x = randn(6, 5 * 20)[:, 20:80].reshape(6, 3, 20)
    found = run("rms_norm", [x, None], [(6, 3, 20), None], (0,), (1e-6,))[0]
    np.testing.assert_allclose(found, reference(x, None, False, 1e-6), **tolerance("float32"))


@pytest.mark.parametrize("width", WIDTHS)
def test_the_sum_and_its_norm(run, randn, width):
    a, b, w = randn(4, width + 3)[:, :width], randn(4, width), randn(width)
    out, total, _ = run("add_rms_norm", [a, b, w], [a.shape, a.shape, None], (0,), (1e-5,))
    np.testing.assert_array_equal(total, a + b)
    np.testing.assert_allclose(out, reference(a + b, w, False), **tolerance("float32"))


@pytest.mark.parametrize("width", [33, 64, 576])
def test_rounds_what_it_would_have_written(run, randn, quantize, width):
    x, w = randn(5, width), randn(width)
    rounded = ((5, quantized_bytes(width)), np.uint8)
    out = run("rms_norm", [x, w], [x.shape, None], (0,), (1e-5,))[0]
    both, q = run("rms_norm", [x, w], [x.shape, rounded], (0,), (1e-5,))
    alone = run("rms_norm", [x, w], [None, rounded], (0,), (1e-5,))[1]
    summed = run("add_rms_norm", [x, np.zeros_like(x), w], [None, x.shape, rounded], (0,), (1e-5,))[2]
    np.testing.assert_array_equal(both, out)
    used = -(-width // 32) * 44  # past the groups a row is padding
    for other in (alone, summed, quantize(out)):
        np.testing.assert_array_equal(q[:, :used], other[:, :used])


def test_a_row_has_the_same_bits_alone(run, randn):
    x, w = randn(9, 100), randn(100)
    together = run("rms_norm", [x, w], [x.shape, None], (0,), (1e-5,))[0]
    for t in range(9):
        alone = run("rms_norm", [x[t : t + 1], w], [(1, 100), None], (0,), (1e-5,))[0]
        np.testing.assert_array_equal(alone, together[t : t + 1])


def test_a_row_of_zeros_is_zeros(run):
    assert not run("rms_norm", [np.zeros((2, 33), np.float32), None], [(2, 33), None], (0,), (1e-6,))[0].any()


@pytest.mark.parametrize(
    ("reads", "results", "message"),
    [
        (
            [np.zeros((2, 4), np.float32), np.zeros(3, np.float32)],
            [np.zeros((2, 4), np.float32), None],
            r"f32 \[4\]",
        ),
        ([np.zeros((4, 2), np.float32).T, None], [np.zeros((2, 4), np.float32), None], "stride 1"),
        ([np.zeros((2, 4), np.float32), None], [None, None], "has no result"),
    ],
)
def test_refuses_operands_that_do_not_fit(library, reads, results, message):
    with pytest.raises(KernelError, match=f"rms_norm: .*{message}"):
        library.call("rms_norm", [*reads, *results], (0,), (1e-5,))
