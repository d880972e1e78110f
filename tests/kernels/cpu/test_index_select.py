import numpy as np
import pytest

from optpipe.errors import KernelError


@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("ids", [np.int32, np.int64])
def test_selects_along_a_dimension(run, randn, rng, dim, ids):
    x = randn(3, 40, 5)
    picked = rng.integers(-x.shape[dim], x.shape[dim], 7).astype(ids)
    expected = np.take(x, picked, axis=dim)
    np.testing.assert_array_equal(run("index_select", [x, picked], [expected.shape], (dim,)), expected)
    view = x.transpose(2, 1, 0)
    expected = np.take(view, picked % view.shape[dim], axis=dim)
    found = run("index_select", [view, picked % view.shape[dim]], [expected.shape], (dim,))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", ["int64", "bool", "float16"])
def test_other_types(run, rng, dtype):
    x, ids = rng.integers(0, 2, (6, 9)).astype(dtype), np.array([5, 0, 5])
    target = "float32" if dtype == "float16" else dtype
    np.testing.assert_array_equal(
        run("index_select", [x, ids], [((3, 9), target)], (0,)), x[ids].astype(target)
    )


def test_no_rows_of_a_list_give_nothing(library):
    library.call(
        "index_select",
        [np.zeros((4, 3), np.float32), np.zeros(0, np.int64), np.zeros((0, 3), np.float32)],
        (0,),
    )


@pytest.mark.parametrize("bad", [4, -5, 2**40])
def test_an_index_outside_fails(library, pools, bad):
    x, out = np.zeros((4, 3), np.float32), np.zeros((2, 3), np.float32)
    for pool in pools.values():
        with pytest.raises(KernelError, match="an index lies outside the dimension"):
            library.call("index_select", [x, np.array([0, bad]), out], (0,), pool=pool)


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_gather(run, randn, rng, dim):
    x = randn(3, 40, 5)
    sizes = list(x.shape)
    sizes[dim] = 4
    ids = rng.integers(0, x.shape[dim], sizes)
    np.testing.assert_array_equal(
        run("gather", [x, ids], [tuple(sizes)], (dim,)), np.take_along_axis(x, ids, dim)
    )


def test_gather_refuses_an_index_outside(library):
    with pytest.raises(KernelError, match="an index lies outside the dimension"):
        library.call(
            "gather", [np.zeros((2, 3), np.float32), np.full((2, 1), 3), np.zeros((2, 1), np.float32)], (1,)
        )
