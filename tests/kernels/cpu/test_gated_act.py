import numpy as np
import pytest
import torch

from optpipe.dialect.gated_act import gated_act
from optpipe.errors import KernelError
from optpipe.testing import tolerance
from optpipe_kernels.cpu.lowering.dialect_rules import ACTIVATIONS


@pytest.mark.parametrize("kind", ACTIVATIONS)
@pytest.mark.parametrize("width", [1, 33, 600])
def test_equals_the_dialect(run, randn, kind, width):
    gate, up = np.split(randn(5, 2 * width) * 4, 2, axis=1)  # rows of one wider buffer
    expected = gated_act(torch.from_numpy(gate.copy()), torch.from_numpy(up.copy()), kind=kind).numpy()
    found = run("gated_act", [gate, up], [(5, width)], (1 + ACTIVATIONS.index(kind),))
    np.testing.assert_allclose(found, expected, **tolerance("float32"))


def test_the_numbers_of_activations_are_the_dialects_order():
    from optpipe.dialect import activations

    assert tuple(activations.ACTIVATIONS) == ACTIVATIONS


def test_refuses_a_kind_that_is_none(library):
    x = np.zeros((1, 4), np.float32)
    for kind in (0, 8, -1):
        with pytest.raises(KernelError, match="gated_act: takes gate, up, out and an activation"):
            library.call("gated_act", [x, x, x.copy()], (kind,))
