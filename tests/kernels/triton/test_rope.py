from __future__ import annotations

import pytest
import torch

from optpipe.dialect import rope as plain
from optpipe.testing import tolerance
from optpipe_kernels.triton.rope import rope


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(
    ("heads", "width", "rotary"), [(3, 8, 8), (5, 20, 12), (1, 64, 64), (3, 6, 2), (70, 24, 8)]
)
def test_equals_the_dialect_inside_a_wider_row(place, interleaved, heads, width, rotary):
    x = torch.randn(4, heads + 1, width, **place)[:, 1:]
    cos, sin = torch.randn(4, rotary, device=x.device), torch.randn(4, rotary, device=x.device)
    expected = plain.rope(x, cos, sin, interleaved=interleaved)
    found = rope(x, cos, sin, interleaved=interleaved)
    torch.testing.assert_close(found, expected, **tolerance(str(expected.dtype).removeprefix("torch.")))
    assert torch.equal(found[..., rotary:], x[..., rotary:])


def test_angles_of_the_computes_type(place):
    x, cos, sin = torch.randn(4, 2, 8, **place), torch.randn(4, 8, **place), torch.randn(4, 8, **place)
    expected = plain.rope(x, cos, sin)
    torch.testing.assert_close(
        rope(x, cos, sin), expected, **tolerance(str(expected.dtype).removeprefix("torch."))
    )


def test_no_tokens(device):
    empty = torch.empty(0, 8, device=device)
    assert rope(torch.empty(0, 2, 8, device=device), empty, empty).shape == (0, 2, 8)
