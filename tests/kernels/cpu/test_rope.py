import numpy as np
import pytest
import torch

from optpipe.dialect.rope import rope
from optpipe.errors import KernelError
from optpipe.testing import tolerance


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("width", "turned"), [(64, 64), (20, 20), (20, 6), (33, 32), (2, 2), (128, 32)])
def test_equals_the_dialect(run, randn, interleaved, width, turned):
    x = randn(6, 5 * width)[:, width : 4 * width].reshape(6, 3, width)  # heads of a fused q, k, v
    cos, sin = randn(6, turned), randn(6, turned)
    given = (torch.from_numpy(np.ascontiguousarray(it)) for it in (x, cos, sin))
    expected = rope(*given, interleaved=interleaved).numpy()
    found = run("rope", [x, cos, sin], [x.shape], (int(interleaved),))
    np.testing.assert_allclose(found, expected, **tolerance("float32"))


def test_a_row_has_the_same_bits_alone(run, randn):
    x, cos, sin = randn(6, 3, 20), randn(6, 20), randn(6, 20)
    together = run("rope", [x, cos, sin], [x.shape], (0,))
    for t in range(6):
        alone = run("rope", [it[t : t + 1] for it in (x, cos, sin)], [(1, 3, 20)], (0,))
        np.testing.assert_array_equal(alone, together[t : t + 1])


def test_refuses_angles_that_are_wider_than_a_head(library):
    x, cos = np.zeros((2, 1, 4), np.float32), np.zeros((2, 6), np.float32)
    with pytest.raises(KernelError, match=r"rope: operand 1 must be .* of at most 4"):
        library.call("rope", [x, cos, cos, x.copy()], (0,))
