"""Complex values become pairs of real ones."""

import pytest
import torch
from torch import nn

from optpipe.errors import TraceError
from optpipe.tracing.real import make_real


def test_complex_products_become_real_ones(graph_of):
    class Turn(nn.Module):
        def forward(self, x, angle):
            pairs = torch.view_as_complex(x.reshape(1, x.shape[1], -1, 2))
            turned = pairs * torch.polar(torch.ones_like(angle), angle) * 0.5
            return torch.view_as_real(turned).flatten(2)

    x, angle = torch.randn(1, 11, 8), torch.randn(1, 11, 4)
    gm = graph_of(Turn(), x, angle)
    assert make_real(gm) > 0
    gm.recompile()
    values = [node.meta.get("val") for node in gm.graph.nodes]
    assert not any(made.is_complex() for made in values if isinstance(made, torch.Tensor))
    torch.testing.assert_close(gm(x, angle), Turn()(x, angle), rtol=1e-6, atol=1e-6)


def test_an_unknown_use_of_complex_numbers_is_refused(graph_of):
    class Absolute(nn.Module):
        def forward(self, x):
            return torch.view_as_complex(x.reshape(1, x.shape[1], -1, 2)).abs()

    gm = graph_of(Absolute(), torch.randn(1, 11, 8))
    with pytest.raises(TraceError, match="complex numbers"):
        make_real(gm)
