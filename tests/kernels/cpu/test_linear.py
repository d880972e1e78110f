import numpy as np
import pytest

from optpipe.errors import KernelError
from optpipe.testing import tolerance
from optpipe_kernels.cpu.pack import Matrix, pack, quantized_bytes

SHAPES = [(1, 1), (17, 33), (64, 576), (100, 101), (130, 640)]  # N, K


@pytest.fixture(params=[16, 32], ids=["bf16", "f32"])
def weight(request, rng):
    """(N, K) → the packed form's bits, a matrix, and its values in float64."""

    def make(rows, inputs):
        values = rng.normal(size=(rows, inputs)).astype(np.float32)
        if request.param == 32:
            return 32, Matrix(values), values.astype(np.float64)
        upper = (values.view(np.uint32) >> 16).astype(np.uint16)
        return 16, Matrix(upper), (upper.astype(np.uint32) << 16).view(np.float32).astype(np.float64)

    return make


def nearest_bf16(x):
    """The nearest bfloat16, ties to even, written down independently of the kernel."""
    bits = x.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)


def read(library, x, bits):
    """x [T, K] as the kernel multiplies it: rounded where the level multiplies pairs of bfloat16."""
    x = np.ascontiguousarray(x)
    return nearest_bf16(x) if library.isa == "avx512bf16" and bits == 16 else x


def run(library, x, blob, outputs, bits, *, pool=None, bias=None, residual=None, activation=0):
    out = np.full((len(x), outputs), np.nan, np.float32)
    ints = (outputs, x.shape[1], bits, 0, 0, activation)
    library.call("linear", [x, blob, bias, residual, out], ints, pool=pool)
    return out


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_product(library, pools, rng, weight, shape):
    bits, matrix, values = weight(*shape)
    blob = pack([matrix], shape[1], bits, 0)
    for tokens in (1, 5, 6, 13):
        x = rng.normal(size=(tokens, shape[1] + 2)).astype(np.float32)[:, : shape[1]]
        out = run(library, x, blob, shape[0], bits, pool=pools[2])
        expected = read(library, x, bits).astype(np.float64) @ values.T
        np.testing.assert_allclose(out, expected, **tolerance("float32 sum"))


def test_a_row_has_the_same_bits_alone_in_a_batch_and_on_any_threads(library, pools, rng, weight):
    bits, matrix, _ = weight(150, 101)
    blob = pack([matrix], 101, bits, 0)
    x = rng.normal(size=(19, 101)).astype(np.float32)
    together = run(library, x, blob, 150, bits, pool=pools[2])
    for pool in pools.values():
        np.testing.assert_array_equal(run(library, x, blob, 150, bits, pool=pool), together)
    alone = [run(library, x[t : t + 1], blob, 150, bits) for t in range(19)]
    np.testing.assert_array_equal(np.concatenate(alone), together)


def test_adds_bias_activates_and_adds_the_residual(library, pools, rng, weight):
    bits, matrix, _ = weight(50, 40)
    blob = pack([matrix], 40, bits, 0)
    x, bias = rng.normal(size=(3, 40)).astype(np.float32), rng.normal(size=50).astype(np.float32)
    residual = rng.normal(size=(3, 50)).astype(np.float32)
    plain = run(library, x, blob, 50, bits)
    out = run(library, x, blob, 50, bits, bias=bias, residual=residual, activation=4, pool=pools[2])
    np.testing.assert_array_equal(out, np.maximum(plain + bias, 0) + residual)


def test_gated_is_the_gate_activated_times_the_other(library, pools, rng, weight, quantize):
    (bits, gate, gate_values), (_, up, up_values) = weight(40, 33), weight(40, 33)
    blob = pack([gate, up], 33, bits, 0, gated=True)
    x = read(library, rng.normal(size=(7, 33)).astype(np.float32), bits)
    out, outq = np.zeros((7, 40), np.float32), np.zeros((7, quantized_bytes(40)), np.uint8)
    library.call("linear_gated", [x, blob, None, out, outq], (40, 33, bits, 0, 0, 4), pool=pools[2])
    expected = np.maximum(x @ gate_values.T, 0) * (x @ up_values.T)
    np.testing.assert_allclose(out, expected, **tolerance("float32 sum"))
    np.testing.assert_array_equal(outq[:, :88], quantize(out)[:, :88])


def test_pairs_end_where_an_odd_row_does_and_begin_anew_with_each_chunk(library, pools, rng, weight):
    """384 KB of rounded rows are a chunk: 1,536 inputs and 300 rows are three of them."""
    bits, matrix, values = weight(20, 1535)
    blob = pack([matrix], 1535, bits, 0)
    x = rng.normal(size=(300, 1536)).astype(np.float32)
    x[:, 1535] = np.nan  # not the row's
    out = run(library, x[:, :1535], blob, 20, bits, pool=pools[3])
    expected = read(library, x[:, :1535], bits).astype(np.float64) @ values.T
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-3)  # sums of 1,535 numbers near 40


def test_argmax_is_the_first_of_the_largest(library, pools, rng, weight):
    bits, matrix, _ = weight(100, 24)
    matrix.weight[60:90] = matrix.weight[10:40]
    blob = pack([matrix], 24, bits, 0)
    x = rng.normal(size=(20, 24)).astype(np.float32)
    logits = run(library, x, blob, 100, bits)
    for pool in pools.values():
        ids = np.zeros(20, np.int64)
        library.call("linear_argmax", [x, blob, None, ids, None], (100, 24, bits, 0, 0), pool=pool)
        np.testing.assert_array_equal(ids, logits.argmax(1))


def test_refuses_a_quantized_weight(library, grid):
    matrix, _ = grid(16, 64, 4, 32, False)
    with pytest.raises(KernelError, match=r"of 4 bits, expected .* of bf16 or f32"):
        run(library, np.zeros((1, 64), np.float32), pack([matrix], 64, 4, 32), 16, 32)
