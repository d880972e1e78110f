import numpy as np
import pytest
import torch

from optpipe.testing import tolerance

NAMES = {"softmax": torch.softmax, "log_softmax": torch.log_softmax}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", [1, 7, 16, 33, 1000])
def test_equals_torch(run, randn, name, width):
    x = randn(3, 5, width) * 20
    expected = NAMES[name](torch.from_numpy(x), -1).numpy()
    np.testing.assert_allclose(run(name, [x], [x.shape]), expected, **tolerance("float32"))
    turned = np.ascontiguousarray(x.transpose(2, 1, 0)).transpose(2, 1, 0)
    np.testing.assert_allclose(run(name, [turned], [x.shape]), expected, **tolerance("float32"))


@pytest.mark.parametrize("name", NAMES)
def test_a_row_has_the_same_bits_alone(run, randn, name):
    x = randn(7, 65)
    together = run(name, [x], [x.shape])
    for t in range(7):
        np.testing.assert_array_equal(run(name, [x[t : t + 1]], [(1, 65)]), together[t : t + 1])


@pytest.mark.parametrize("name", NAMES)
def test_masked_entries_and_rows_of_nothing_else(run, name):
    x = np.zeros((3, 20), np.float32)
    x[0, 5:] = -np.inf
    x[1] = -np.inf
    x[2, 3] = 1e30
    expected = NAMES[name](torch.from_numpy(x), -1).numpy()
    np.testing.assert_allclose(run(name, [x], [x.shape]), expected, **tolerance("float32"))


def test_what_is_no_number_stays(run):
    x = np.zeros((2, 20), np.float32)
    x[0, 7] = np.nan
    found = run("softmax", [x], [x.shape])
    assert np.isnan(found[0]).all()
    np.testing.assert_allclose(found[1], 0.05, rtol=1e-6)
