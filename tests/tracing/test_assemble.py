"""Tensors that are filled part by part become the parts, joined."""

import torch
from torch import nn

from optpipe.tracing.assemble import assemble


def recompiled(gm):
    gm.recompile()
    return gm


def test_a_tensor_filled_in_parts_is_the_parts_joined(graph_of):
    class Filled(nn.Module):
        def forward(self, x, y):
            out = x.new_empty(1, x.shape[1], 4)
            out[..., 1:].copy_(y)
            out[..., :1].copy_(x)
            return out

    x, y = torch.randn(1, 11, 1), torch.randn(1, 11, 3)
    gm = graph_of(Filled(), x, y)
    assert assemble(gm) == 1
    assert "empty" not in str(gm.graph)
    assert torch.equal(recompiled(gm)(x, y), torch.cat([x, y], -1))


def test_a_tensor_with_a_gap_is_left_alone(graph_of):
    class Gap(nn.Module):
        def forward(self, x):
            out = x.new_empty(1, x.shape[1], 4)
            out[..., :1].copy_(x)
            return out

    x = torch.randn(1, 11, 1)
    assert assemble(graph_of(Gap(), x)) == 0
