import numpy as np
import pytest
import torch

from optpipe.dialect.activations import ACTIVATIONS
from optpipe.dialect.quant_linear import quant_linear
from optpipe.errors import KernelError
from optpipe.testing import tolerance
from optpipe_kernels.cpu.pack import form_of, pack, quantized_bytes

FORMS = [  # N, K, bits, group, minimum
    (1, 32, 4, 32, False),
    (17, 576, 4, 32, True),
    (100, 640, 4, 64, False),
    (96, 1536, 4, 128, True),
    (20, 104, 4, -1, False),
    (50, 1536, 8, -1, False),
    (33, 96, 8, 32, False),
    (33, 96, 8, 32, True),
    (40, 256, 8, 128, True),
]
TOKENS = (1, 3, 8, 13)


def emulated(x, values, rounded):
    """The product of rounded rows and true weights, in float64."""
    codes, scale = rounded(x)
    rows = (codes.astype(np.float64) * scale[..., None]).reshape(len(x), -1)
    return rows[:, : x.shape[1]] @ values.T


def run(library, q, blob, form, *, bias=None, residual=None, out=None, activation=0, pool=None):
    n, k, bits, group, minimum = form
    out = np.full((len(q), n), np.nan, np.float32) if out is None else out
    ints = (n, k, bits, group, minimum, activation)
    library.call("quant_linear", [q, blob, bias, residual, out], ints, pool=pool)
    return out


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_equals_the_product_of_rounded_rows(library, pools, rng, grid, rounded, quantize, form):
    matrix, values = grid(*form)
    blob = pack([matrix], *form[1:4])
    for tokens in TOKENS:
        x = rng.normal(size=(tokens, form[1])).astype(np.float32)
        out = run(library, quantize(x), blob, form, pool=pools[2])
        np.testing.assert_allclose(out, emulated(x, values, rounded), **tolerance("float32 sum"))


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_equals_the_dialect_but_for_the_rounding_of_rows(library, pools, rng, grid, quantize, form):
    matrix, _ = grid(*form, scales=np.float32)
    x = rng.normal(size=(4, form[1])).astype(np.float32)
    out = run(library, quantize(x), pack([matrix], *form[1:4]), form, pool=pools[2])
    low = None if matrix.minimum is None else torch.from_numpy(matrix.minimum)
    words, scale = torch.from_numpy(matrix.weight), torch.from_numpy(matrix.scale)
    expected = quant_linear(torch.from_numpy(x), words, scale, low, None, bits=form[2], group=form[3]).numpy()
    # Steps of max/127, about 2.2σ/127 in groups of 32: an error of 2.2/127/√12 = 0.5 % of x; one output of
    # forty may be four times the mean.
    size = np.sqrt(np.square(expected).mean())
    assert np.abs(out - expected).max() < 0.03 * size
    assert np.sqrt(np.square(out - expected).mean()) < 0.01 * size


@pytest.mark.parametrize("form", FORMS[1:6], ids=str)
def test_a_row_has_the_same_bits_alone_in_a_batch_and_on_any_threads(
    library, pools, rng, grid, quantize, form
):
    matrix, _ = grid(*form)
    blob = pack([matrix], *form[1:4])
    q = quantize(rng.normal(size=(19, form[1])).astype(np.float32))
    together = run(library, q, blob, form, pool=pools[2])
    for pool in pools.values():
        np.testing.assert_array_equal(run(library, q, blob, form, pool=pool), together)
    alone = [run(library, q[t : t + 1], blob, form) for t in range(19)]
    np.testing.assert_array_equal(np.concatenate(alone), together)


def test_adds_bias_activates_and_adds_the_residual_in_place(library, pools, rng, grid, quantize):
    form = (50, 64, 4, 32, True)
    matrix, _ = grid(*form)
    blob = pack([matrix], *form[1:4])
    q = quantize(rng.normal(size=(3, 64)).astype(np.float32))
    bias = rng.normal(size=50).astype(np.float32)
    wide = rng.normal(size=(3, 80)).astype(np.float32)
    before, window = wide.copy(), wide[:, 10:60]
    plain = run(library, q, blob, form)
    run(library, q, blob, form, bias=bias, residual=window, out=window, activation=4, pool=pools[2])
    np.testing.assert_array_equal(window, np.maximum(plain + bias, 0) + before[:, 10:60])
    np.testing.assert_array_equal(wide[:, :10], before[:, :10])
    np.testing.assert_array_equal(wide[:, 60:], before[:, 60:])


def test_matrices_over_one_input_are_packed_end_to_end(library, rng, grid, quantize):
    made = [grid(n, 64, 4, 32, False) for n in (20, 5, 33)]
    q = quantize(rng.normal(size=(2, 64)).astype(np.float32))
    joint = run(library, q, pack([it for it, _ in made], 64, 4, 32), (58, 64, 4, 32, False))
    apart = [run(library, q, pack([it], 64, 4, 32), (len(v), 64, 4, 32, False)) for it, v in made]
    np.testing.assert_array_equal(joint, np.concatenate(apart, 1))


@pytest.mark.parametrize("outputs", [32, 40, 64, 200])
@pytest.mark.parametrize("kind", [1, 3])
def test_gated_is_the_gate_activated_times_the_other(
    library, pools, rng, grid, rounded, quantize, outputs, kind
):
    (gate, gate_values), (up, up_values) = (grid(outputs, 96, 4, 32, True) for _ in range(2))
    blob = pack([gate, up], 96, 4, 32, gated=True)
    bias = rng.normal(size=2 * outputs).astype(np.float32)
    for tokens in (1, 11):
        x = rng.normal(size=(tokens, 96)).astype(np.float32)
        q, ints = quantize(x), (outputs, 96, 4, 32, True, kind)
        out = np.full((tokens, outputs), np.nan, np.float32)
        library.call("quant_linear_gated", [q, blob, bias, out, None], ints, pool=pools[2])
        sums = [
            torch.from_numpy(emulated(x, it, rounded) + b)
            for it, b in zip((gate_values, up_values), np.split(bias, 2), strict=True)
        ]
        activate = ACTIVATIONS["silu" if kind == 1 else "gelu_tanh"]
        np.testing.assert_allclose(out, activate(sums[0]) * sums[1], **tolerance("float32 sum"))
        outq = np.full((tokens, quantized_bytes(outputs)), 77, np.uint8)
        again = np.full_like(out, np.nan)
        library.call("quant_linear_gated", [q, blob, bias, again, outq], ints, pool=pools[3])
        np.testing.assert_array_equal(again, out)
        used = -(-outputs // 32) * 44
        np.testing.assert_array_equal(outq[:, :used], quantize(out)[:, :used])


def test_argmax_is_the_first_of_the_largest(library, pools, rng, grid, quantize):
    form = (100, 64, 8, -1, False)
    matrix, _ = grid(*form)
    matrix.weight[70:80] = matrix.weight[20:30]  # ties
    matrix.scale[70:80] = matrix.scale[20:30]
    blob = pack([matrix], *form[1:4])
    q = quantize(rng.normal(size=(40, 64)).astype(np.float32))
    for bias in (None, rng.normal(size=100).astype(np.float32)):
        logits = run(library, q, blob, form, bias=bias)
        for pool in pools.values():
            ids, best = np.zeros(40, np.int64), np.zeros(40, np.float32)
            library.call("quant_linear_argmax", [q, blob, bias, ids, best], form, pool=pool)
            np.testing.assert_array_equal(ids, logits.argmax(1))
            np.testing.assert_array_equal(best, logits.max(1))


def test_argmax_takes_a_nan_for_the_largest(library, pools, grid, quantize):
    form = (40, 32, 4, 32, False)
    matrix, _ = grid(*form)
    matrix.scale[[21, 30]] = np.nan
    blob = pack([matrix], *form[1:4])
    ids, best = np.zeros(1, np.int64), np.zeros(1, np.float32)
    q = quantize(np.ones((1, 32), np.float32))
    library.call("quant_linear_argmax", [q, blob, None, ids, best], form, pool=pools[2])
    assert ids[0] == 21 and np.isnan(best[0])


def test_no_rows_are_no_work(library, pools, grid):
    form = (16, 32, 4, 32, False)
    matrix, _ = grid(*form)
    q = np.zeros((0, quantized_bytes(32)), np.uint8)
    assert run(library, q, pack([matrix], *form[1:4]), form, pool=pools[2]).shape == (0, 16)


def test_refuses_what_does_not_fit(library, grid, quantize):
    form = (16, 64, 4, 32, False)
    matrix, _ = grid(*form)
    blob, q = pack([matrix], *form[1:4]), quantize(np.ones((1, 64), np.float32))
    with pytest.raises(KernelError, match=r"is a packed \[16, 64\] of 4 bits, expected \[17, 64\]"):
        run(library, q, blob, (17, 64, 4, 32, False))
    with pytest.raises(KernelError, match="no packed weight, or a part of one"):
        run(library, q, blob[:-64], form)
    with pytest.raises(KernelError, match="operand 0 must be u8"):
        run(library, q[:, :64], blob, form)
    with pytest.raises(KernelError, match="operand 2 must be f32"):
        run(library, q, blob, form, bias=np.zeros(15, np.float32))
    with pytest.raises(KernelError, match="groups are multiples of 32"):
        form_of([matrix], 64, 4, 48)


@pytest.mark.parametrize("field", range(4, 64, 4))
def test_refuses_a_head_that_lies(library, grid, quantize, field):
    form = (16, 64, 4, 32, False)
    matrix, _ = grid(*form)
    blob, q = pack([matrix], *form[1:4]), quantize(np.ones((1, 64), np.float32))
    blob[field : field + 4] = 0xFF if field < 56 else 0  # the last eight bytes mean nothing
    if field >= 56:
        run(library, q, blob, form)
        return
    with pytest.raises(KernelError, match="quant_linear: "):
        run(library, q, blob, form)


@pytest.mark.slow
def test_a_head_of_a_large_vocabulary(library, pools, rng, grid, rounded, quantize):
    form = (49152, 576, 8, -1, False)
    matrix, values = grid(*form)
    x = rng.normal(size=(9, 576)).astype(np.float32)
    blob = pack([matrix], *form[1:4])
    out = run(library, quantize(x), blob, form, pool=pools[2])
    np.testing.assert_allclose(out, emulated(x, values, rounded), **tolerance("float32 sum"))
