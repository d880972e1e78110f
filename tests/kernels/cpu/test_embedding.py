import numpy as np
import pytest

from optpipe.errors import KernelError
from optpipe_kernels.cpu.pack import Matrix, pack


@pytest.mark.parametrize(("bits", "group"), [(4, 32), (4, 64), (8, -1), (8, 32)])
@pytest.mark.parametrize("minimum", [False, True])
def test_rows_of_a_packed_table(run, grid, rng, bits, group, minimum):
    matrix, values = grid(53, 192, bits, group, minimum)
    ids = rng.integers(0, 53, (5, 3))
    ints = (53, 192, bits, group, int(minimum))
    found = run("embedding", [ids, pack([matrix], 192, bits, group)], [(5, 3, 192)], ints)
    np.testing.assert_allclose(found, values[ids], rtol=2e-6, atol=1e-6)  # two roundings of float32


@pytest.mark.parametrize("bits", [16, 32])
def test_rows_of_a_table_of_floats_are_exact(run, randn, bits):
    values = randn(37, 45)
    stored = values if bits == 32 else (values.view(np.uint32) >> 16).astype(np.uint16)
    exact = values if bits == 32 else (stored.astype(np.uint32) << 16).view(np.float32)
    ids = np.array([0, 36, 5, 5], np.int32)
    found = run("embedding", [ids, pack([Matrix(stored)], 45, bits, 0)], [(4, 45)], (37, 45, bits, 0, 0))
    np.testing.assert_array_equal(found, exact[ids])


@pytest.mark.parametrize("bad", [-1, 37])
def test_an_id_outside_the_vocabulary_fails(library, randn, bad):
    blob = pack([Matrix(randn(37, 45))], 45, 32, 0)
    with pytest.raises(KernelError, match="a token id lies outside the vocabulary"):
        library.call("embedding", [np.array([bad]), blob, np.zeros((1, 45), np.float32)], (37, 45, 32, 0, 0))
