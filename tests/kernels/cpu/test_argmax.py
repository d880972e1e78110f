import numpy as np
import pytest

from optpipe.errors import KernelError


def argmax(library, x, pool=None):
    ids = np.full(len(x), -1, np.int64)
    library.call("argmax", [x, ids], pool=pool)
    return ids


def topk(library, x, k, pool=None):
    values, ids = np.zeros((len(x), k), np.float32), np.zeros((len(x), k), np.int64)
    library.call("topk", [x, values, ids], [k], pool=pool)
    return values, ids


@pytest.mark.parametrize("columns", [1, 3, 16, 17, 100, 49152])
def test_finds_the_largest(library, pools, rng, columns):
    x = rng.normal(size=(5, columns)).astype(np.float32)
    for pool in pools.values():
        np.testing.assert_array_equal(argmax(library, x, pool), x.argmax(1))


def test_the_first_of_equals_wins_and_a_nan_beats_all(library):
    x = np.zeros((4, 40), np.float32)
    x[1, [7, 35]] = 3
    x[2, [20, 39]] = np.nan
    x[2, 3] = np.inf
    x[3] = -np.inf
    np.testing.assert_array_equal(argmax(library, x), [0, 7, 20, 0])
    np.testing.assert_array_equal(topk(library, x, 2)[1], [[0, 1], [7, 35], [20, 39], [0, 1]])


@pytest.mark.parametrize(("columns", "k"), [(1, 1), (8, 2), (128, 8), (100, 100), (5000, 40)])
def test_the_largest_in_order(library, pools, rng, columns, k):
    x = rng.integers(0, 50, (6, columns)).astype(np.float32)  # many ties
    expected = np.argsort(-x, axis=1, kind="stable")[:, :k]
    for pool in pools.values():
        values, ids = topk(library, x, k, pool)
        np.testing.assert_array_equal(ids, expected)
        np.testing.assert_array_equal(values, np.take_along_axis(x, expected, 1))


def test_refuses_more_than_there_are(library):
    with pytest.raises(KernelError, match="topk: k is 4 of 3 columns"):
        topk(library, np.zeros((1, 3), np.float32), 4)
