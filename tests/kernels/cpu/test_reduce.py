import numpy as np
import pytest

from optpipe.errors import KernelError
from optpipe.testing import tolerance

NAMES = {"sum": np.sum, "mean": np.mean, "amax": np.max, "amin": np.min}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(3, 1), (2, 40, 50), (5, 7, 3, 17), (4, 1000)], ids=str)
def test_reduces_the_last_dimensions(run, randn, name, shape):
    x = randn(*shape)
    for count in range(1, len(shape) + 1):
        expected = NAMES[name](x.astype(np.float64), axis=tuple(range(len(shape) - count, len(shape))))
        found = run(name, [x], [(expected.shape, np.float32)], (count,))
        np.testing.assert_allclose(found, expected, **tolerance("float32 sum"))


@pytest.mark.parametrize("name", NAMES)
def test_any_strides(run, randn, name):
    x = randn(6, 40, 5)
    found = run(name, [x.transpose(0, 2, 1)], [(6, 5)], (1,))
    np.testing.assert_allclose(found, NAMES[name](x.astype(np.float64), axis=1), **tolerance("float32 sum"))


def test_a_row_has_the_same_bits_alone(run, randn):
    x = randn(9, 333)
    together = run("sum", [x], [(9,)], (1,))
    for t in range(9):
        np.testing.assert_array_equal(run("sum", [x[t : t + 1]], [(1,)], (1,)), together[t : t + 1])


def test_what_is_no_number_stays(run):
    x = np.zeros((4, 40), np.float32)
    x[[0, 1, 2], [0, 20, 39]] = np.nan
    for name in NAMES:
        assert np.isnan(run(name, [x], [(4,)], (1,))).tolist() == [True, True, True, False], name


def test_whole_numbers(run, rng):
    x = rng.integers(-100, 100, (3, 50))
    np.testing.assert_array_equal(run("sum", [x], [((3,), np.int64)], (1,)), x.sum(1))


def test_refuses_a_result_of_other_sizes(library):
    with pytest.raises(KernelError, match="sum: out must have the sizes of x that stay"):
        library.call("sum", [np.zeros((3, 4), np.float32), np.zeros(4, np.float32)], (1,))
