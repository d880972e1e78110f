import numpy as np
import pytest
import torch
from torch.nn import functional

from optpipe.errors import KernelError
from optpipe.testing import tolerance

UNARY = {
    "neg": torch.neg, "abs": torch.abs, "exp": torch.exp, "sin": torch.sin, "cos": torch.cos,
    "tanh": torch.tanh, "sigmoid": torch.sigmoid, "silu": functional.silu, "relu": torch.relu,
    "square": torch.square, "floor": torch.floor, "round": torch.round, "erf": torch.erf,
    "reciprocal": torch.reciprocal, "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
}  # fmt: skip
POSITIVE = {"sqrt": torch.sqrt, "rsqrt": torch.rsqrt, "log": torch.log}
EXACT = {"neg", "abs", "relu", "square", "floor", "round", "reciprocal"}
ARITHMETIC = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide,
    "maximum": np.maximum, "minimum": np.minimum,
}  # fmt: skip
COMPARE = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater,
    "ge": np.greater_equal, "logical_and": np.logical_and, "logical_or": np.logical_or,
}  # fmt: skip
EDGES = np.array(
    [0, -0.0, np.inf, -np.inf, np.nan, 1e-40, 88, -88, 700, -700, 0.5, 1.5, 2.5, -2.5], np.float32
)


@pytest.mark.parametrize("name", [*UNARY, *POSITIVE])
@pytest.mark.parametrize("width", [1, 33, 300])
def test_equals_torch_over_strided_rows(run, randn, name, width):
    x = randn(5, 3, width) * 3
    x = np.abs(x) + 0.01 if name in POSITIVE else x
    expected = {**UNARY, **POSITIVE}[name](torch.from_numpy(x.transpose(1, 0, 2).copy())).numpy()
    near = tolerance("exact" if name in EXACT else "float32")
    np.testing.assert_allclose(run(name, [x.transpose(1, 0, 2)], [expected.shape]), expected, **near)


@pytest.mark.parametrize("name", [name for name in UNARY if name not in ("sin", "cos")])
def test_what_is_huge_tiny_infinite_or_no_number_goes_where_torch_sends_it(run, name):
    x = (
        EDGES[~np.isinf(EDGES)] if name == "gelu" else EDGES
    )  # torch's own gelu of infinity depends on the place
    expected = UNARY[name](torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(run(name, [x], [x.shape]), expected, **tolerance("float32"))


def test_sin_and_cos_of_positions_far_out(run):
    x = np.arange(0, 200_000, 97, dtype=np.float32)
    for name in ("sin", "cos"):
        expected = getattr(np, name)(x.astype(np.float64))
        np.testing.assert_allclose(run(name, [x], [x.shape]), expected, rtol=0, atol=1.2e-7)  # one ulp of 1


@pytest.mark.parametrize("name", [*ARITHMETIC, *COMPARE])
def test_two_operands_broadcast_by_strides_of_zero(run, rng, name):
    shift = np.float32(0.25 if name == "div" else 0)  # nothing is divided by 0
    small = rng.integers(-2, 3, (4, 1, 19)).astype(np.float32) + shift
    other = rng.integers(-2, 3, (1, 6, 19)).astype(np.float32) + shift
    a, b = np.broadcast_arrays(small, other)
    function = {**ARITHMETIC, **COMPARE}[name]
    for left, right in ((a, b), (b, a[:, ::-1])):
        expected = function(left, right)
        found = run(name, [left, right], [(expected.shape, expected.dtype)])
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", [*ARITHMETIC, "lt", "ge"])
def test_a_number_stands_for_either_operand(run, randn, name):
    x, number = randn(3, 40), np.float32(1.5)
    function = {**ARITHMETIC, **COMPARE}[name]
    first, second = function(number, x), function(x, number)
    np.testing.assert_array_equal(run(name, [None, x], [(x.shape, first.dtype)], (), (1.5,)), first)
    np.testing.assert_array_equal(run(name, [x, None], [(x.shape, first.dtype)], (), (1.5,)), second)


def test_powers(run, randn):
    x = np.abs(randn(2, 37))
    for power in (0.5, 2, 3, -1.5):
        expected = x.astype(np.float64) ** power
        np.testing.assert_allclose(run("pow", [x, None], [x.shape], (), (power,)), expected, rtol=1e-6)
    np.testing.assert_allclose(
        run("pow", [None, x], [x.shape], (), (1e4,)), 1e4 ** x.astype(float), rtol=1e-6
    )


def test_whole_numbers_are_computed_whole(run, rng):
    x = rng.integers(-(2**40), 2**40, (6, 5))
    np.testing.assert_array_equal(run("add", [x, None], [(x.shape, np.int64)], (), (3,)), x + 3)
    np.testing.assert_array_equal(
        run("sub", [x, x.T.reshape(6, 5)], [(x.shape, np.int64)]), x - x.T.reshape(6, 5)
    )
    np.testing.assert_array_equal(run("mul", [x, x], [(x.shape, np.int64)]), x * x)  # and wrap
    np.testing.assert_array_equal(run("lt", [x, None], [(x.shape, np.bool_)], (), (0,)), x < 0)
    bits = x.astype(np.int32)
    np.testing.assert_array_equal(
        run("bitwise_and", [bits, None], [(x.shape, np.int32)], (), (255,)), bits & 255
    )
    np.testing.assert_array_equal(
        run("bitwise_or", [bits, bits[::-1]], [(x.shape, np.int32)]), bits | bits[::-1]
    )


def test_whole_numbers_past_what_float32_holds(run):
    x, number = np.array([2**24, 2**24 + 1, 2**24 + 2, -(2**50) - 1]), 2**24 + 1
    np.testing.assert_array_equal(run("eq", [x, None], [((4,), np.bool_)], (), (number,)), x == number)
    np.testing.assert_array_equal(run("add", [None, x], [((4,), np.int64)], (), (number,)), x + number)
    low, high = -(2.0**40) - 1, 2.0**24 + 1
    found = run("clamp", [x], [((4,), np.int64)], (), (low, high))
    np.testing.assert_array_equal(found, np.clip(x, int(low), int(high)))
    found = run("clamp", [x], [((4,), np.int64)], (), (-float("inf"), float("inf")))
    np.testing.assert_array_equal(found, x)
    assert not run("ge", [x, None], [((4,), np.bool_)], (), (float("inf"),)).any()


def test_truth_is_not_and_or(run, rng):
    a, b = rng.integers(0, 2, (2, 7, 9)).astype(np.bool_)
    np.testing.assert_array_equal(run("logical_not", [a], [(a.shape, np.bool_)]), ~a)
    np.testing.assert_array_equal(run("bitwise_and", [a, b], [(a.shape, np.bool_)]), a & b)
    np.testing.assert_array_equal(run("bitwise_or", [a, b], [(a.shape, np.bool_)]), a | b)


def test_the_larger_and_the_smaller_keep_no_number(run):
    a, b = np.array([np.nan, 1, np.inf, -0.5], np.float32), np.array([2, np.nan, 3, 0.5], np.float32)
    np.testing.assert_array_equal(run("maximum", [a, b], [(4,)]), np.maximum(a, b))
    np.testing.assert_array_equal(run("minimum", [a, b], [(4,)]), np.minimum(a, b))


def test_clamp_and_where(run, randn, rng):
    x, other = randn(5, 2, 23), randn(2, 23)
    clamped = run("clamp", [x], [x.shape], (), (-0.5, float("inf")))
    np.testing.assert_array_equal(clamped, np.clip(x, -0.5, np.inf))
    condition = rng.integers(0, 2, (5, 2, 1)).astype(np.bool_)
    spread, b = np.broadcast_to(condition, x.shape), np.broadcast_to(other, x.shape)
    np.testing.assert_array_equal(run("where", [spread, x, b], [x.shape]), np.where(condition, x, b))
    low = float(np.finfo(np.float32).min)
    expected = np.where(condition, np.float32(low), x)
    np.testing.assert_array_equal(run("where", [spread, None, x], [x.shape], (), (low,)), expected)
    ids = rng.integers(-(2**40), 2**40, x.shape)
    found = run("where", [spread, ids, None], [(x.shape, np.int64)], (), (7,))
    np.testing.assert_array_equal(found, np.where(condition, ids, 7))


def test_operands_of_other_types_are_converted(run, rng):
    ids = rng.integers(-50, 50, (4, 21))
    half = ids.astype(np.float16) / 8
    expected = ids.astype(np.float32) + half.astype(np.float32)
    np.testing.assert_array_equal(run("add", [ids, half], [ids.shape]), expected)


@pytest.mark.parametrize(
    ("name", "reads", "numbers", "message"),
    [
        ("add", [np.zeros(3, np.float32), np.zeros(4, np.float32)], (), "3 and 4|4 and 3"),
        ("add", [np.zeros(4, np.float32), None], (), "two operands, or one and a number"),
        ("exp", [np.zeros((1, 4), np.float32)], (), "2 and 1 dimensions"),
        ("clamp", [np.zeros(4, np.float32)], (1,), "a low and a high bound"),
        ("where", [None, np.zeros(4, np.float32), None], (1,), "a condition and two operands"),
    ],
)
def test_refuses_operands_that_do_not_fit(library, name, reads, numbers, message):
    with pytest.raises(KernelError, match=f"{name}: .*({message})"):
        library.call(name, [*reads, np.zeros(4, np.float32)], (), numbers)
