"""Two planes: what a first rounding of activations left over is rounded again, and both are multiplied."""

import numpy as np
import pytest

from optpipe_kernels.cpu.pack import pack, quantized_bytes

# A rounding is off by half a step, 1/254 of the group's largest; the second step is a 254th of the first.
STEP = 1 / 254**2


@pytest.fixture
def planes(library, pools):
    """x [T, K] → its rows in two planes."""

    def make(x, pool=2):
        q = np.zeros((len(x), 2 * quantized_bytes(x.shape[1])), np.uint8)
        library.call("quantize", [x, q], pool=pools[pool])
        return q

    return make


def values(q, inputs):
    """What the planes say, in float64."""
    total, groups = 0.0, -(-inputs // 32)
    for plane in np.split(q, 2, axis=1):
        codes = plane[:, : 32 * groups].view(np.int8).reshape(-1, groups, 32).astype(np.float64)
        scale = plane[:, 32 * groups : 36 * groups].copy().view(np.float32)
        total = total + codes * scale[..., None]
    return total.reshape(len(q), -1)[:, :inputs]


def largest(x):
    """The largest of each element's group of 32."""
    padded = np.zeros((len(x), -(-x.shape[1] // 32) * 32))
    padded[:, : x.shape[1]] = np.abs(x)
    return np.repeat(padded.reshape(len(x), -1, 32).max(-1), 32, 1)[:, : x.shape[1]]


@pytest.mark.parametrize("inputs", [1, 33, 100, 576])
def test_both_planes_hold_15_bits(planes, rng, inputs):
    x = rng.normal(size=(5, inputs)).astype(np.float32)
    found = values(planes(x), inputs)
    assert (np.abs(found - x) <= 1.01 * STEP / 2 * 2 * largest(x)).all()


@pytest.mark.parametrize(
    "form", [(17, 576, 4, 32, True), (100, 640, 4, 64, False), (50, 1536, 8, -1, False)], ids=str
)
def test_a_product_of_both_is_the_true_one_within_15_bits(library, pools, planes, grid, rng, form):
    n, k, bits, group, minimum = form
    matrix, true = grid(*form)
    blob = pack([matrix], k, bits, group)
    x = rng.normal(size=(9, k)).astype(np.float32)
    bias, residual = rng.normal(size=n).astype(np.float32), rng.normal(size=(9, n)).astype(np.float32)
    expected = x.astype(np.float64) @ true.T + bias + residual
    rows = {}
    for tokens in (1, 2, 9):
        for threads in (1, 2, 3):
            out = np.full((tokens, n), np.nan, np.float32)
            operands = [planes(x[:tokens], threads), blob, bias, residual[:tokens], out]
            library.call("quant_linear", operands, (n, k, bits, group, minimum), pool=pools[threads])
            np.testing.assert_array_equal(out, rows.setdefault(tokens, out))
        np.testing.assert_array_equal(rows[tokens][0], rows[1][0])
    bound = (largest(x) * STEP) @ np.abs(true).T + 1e-6 * (np.abs(x) @ np.abs(true).T)  # and float32's own
    assert (np.abs(rows[9] - expected) <= bound).all()


def test_the_likeliest_of_both(library, pools, planes, grid, rng):
    matrix, true = grid(300, 96, 8, 32, False)
    blob = pack([matrix], 96, 8, 32)
    x = rng.normal(size=(5, 96)).astype(np.float32)
    ids = np.full(5, -1, np.int64)
    best = np.zeros(5, np.float32)
    library.call(
        "quant_linear_argmax", [planes(x), blob, None, ids, best], (300, 96, 8, 32, 0), pool=pools[3]
    )
    np.testing.assert_array_equal(ids, (x.astype(np.float64) @ true.T).argmax(-1))


def test_norms_and_gated_products_write_both(library, pools, planes, grid, rng):
    x, w = rng.normal(size=(4, 96)).astype(np.float32), rng.normal(size=96).astype(np.float32)
    plain = np.empty_like(x)
    both = np.zeros((4, 2 * quantized_bytes(96)), np.uint8)
    library.call("rms_norm", [x, w, plain, both], (0,), (1e-5,), pool=pools[2])
    np.testing.assert_array_equal(both, planes(plain))
    library.call("add_rms_norm", [x, x, w, plain, np.empty_like(x), both], (0,), (1e-5,), pool=pools[2])
    np.testing.assert_array_equal(both, planes(plain))
    library.call("layer_norm", [x, w, w, plain, both], (), (1e-5,), pool=pools[2])
    np.testing.assert_array_equal(both, planes(plain))
    parts = [grid(80, 96, 4, 32, True)[0] for _ in range(2)]
    blob = pack(parts, 96, 4, 32, gated=True)
    out, outq = np.empty((4, 80), np.float32), np.zeros((4, 2 * quantized_bytes(80)), np.uint8)
    library.call("quant_linear_gated", [both, blob, None, out, outq], (80, 96, 4, 32, 1, 1), pool=pools[3])
    np.testing.assert_array_equal(outq, planes(out))
