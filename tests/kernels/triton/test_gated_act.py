from __future__ import annotations

import pytest
import torch

from optpipe.dialect import gated_act as plain
from optpipe.dialect.activations import ACTIVATIONS
from optpipe.errors import KernelError
from optpipe.testing import tolerance
from optpipe_kernels.triton.gated_act import gated_act


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_equals_the_dialect_for_halves_of_one_projection(place, kind):
    both = torch.randn(7, 2 * 37, **place) * 5
    both[0, :4] = torch.tensor([0.0, 1e-4, -60.0, 60.0])
    gate, up = both[:, :37], both[:, 37:]
    expected = plain.gated_act(gate, up, kind=kind)
    found = gated_act(gate, up, kind=kind)
    torch.testing.assert_close(found, expected, **tolerance(str(expected.dtype).removeprefix("torch.")))


def test_rows_wider_than_a_block_and_more_dimensions(place):
    gate, up = torch.randn(2, 1, 1500, **place), torch.randn(2, 1, 1500, **place)
    expected = plain.gated_act(gate, up, kind="silu")
    found = gated_act(gate, up, kind="silu")
    torch.testing.assert_close(found, expected, **tolerance(str(expected.dtype).removeprefix("torch.")))


def test_columns_that_alternate_are_copied(device):
    both = torch.randn(3, 20, device=device)
    found = gated_act(both[:, 0::2], both[:, 1::2], kind="relu")
    torch.testing.assert_close(found, plain.gated_act(both[:, 0::2], both[:, 1::2], kind="relu"))


def test_an_unknown_activation():
    with pytest.raises(KernelError, match="mish"):
        gated_act(torch.ones(1, 2), torch.ones(1, 2), kind="mish")
