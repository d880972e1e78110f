import numpy as np
import pytest

from optpipe.errors import KernelError
from optpipe_kernels.cpu.library import Bf16


def bits(x):
    return (np.asarray(x, np.float32).view(np.uint32) >> 16).astype(np.uint16)


def test_moves_any_strides(run, randn):
    x = randn(3, 4, 5, 70)
    view = x.transpose(2, 0, 3, 1)[:, ::-1, 1::2]
    np.testing.assert_array_equal(run("copy", [view], [view.shape]), view)
    repeated = np.broadcast_to(x[:, :1], x.shape)
    np.testing.assert_array_equal(run("copy", [repeated], [x.shape]), repeated)


def test_writes_into_a_window(library, randn):
    whole, x = np.zeros((4, 10, 6), np.float32), randn(4, 3, 6)
    library.call("copy", [x, whole[:, 5:8]])
    np.testing.assert_array_equal(whole[:, 5:8], x)
    assert not whole[:, :5].any() and not whole[:, 8:].any()


@pytest.mark.parametrize("source", ["float32", "float16", "int64", "int32", "int8", "uint8", "bool"])
@pytest.mark.parametrize("target", ["float32", "int64", "int32", "bool"])
def test_converts(run, rng, source, target):
    x = rng.integers(0, 100, (3, 50)).astype(source)
    x = x + x.dtype.type(0.5) if x.dtype.kind == "f" else x
    np.testing.assert_array_equal(run("copy", [x], [(x.shape, target)]), x.astype(target))


def test_whole_numbers_of_64_bits_lose_nothing(run):
    x = np.array([2**62 + 1, -(2**62) - 1, 2**53 + 1])
    np.testing.assert_array_equal(run("copy", [x], [((3,), np.int64)]), x)


def test_bfloat16_widens_exactly_and_is_rounded_to_nearest_even(library, run, randn):
    x = randn(7, 33)
    upper = bits(x)
    widened = (upper.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(run("copy", [Bf16(upper)], [x.shape]), widened)
    out = np.zeros(4, np.uint16)
    halves = np.array([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8 - 2**-20, -np.inf], np.float32)
    library.call("copy", [halves, Bf16(out)])
    np.testing.assert_array_equal(out, bits([1, 1 + 2**-6, -1 - 2**-7, -np.inf]))


@pytest.mark.parametrize("dtype", ["float32", "int64", "bool"])
def test_fill(run, dtype):
    np.testing.assert_array_equal(run("fill", [], [((3, 300), dtype)], (), (5,)), np.full((3, 300), 5, dtype))


def test_fill_with_a_whole_number_past_what_float32_holds(run):
    assert run("fill", [], [((3,), np.int64)], (), (2**24 + 1,)).tolist() == [2**24 + 1] * 3


def test_of_nothing_is_nothing(library):
    library.call("copy", [np.zeros((0, 4), np.float32), np.zeros((0, 4), np.float32)])


def test_refuses_to_write_float16(library):
    with pytest.raises(KernelError, match="no op writes float16"):
        library.call("copy", [np.zeros(3, np.float32), np.zeros(3, np.float16)])
