import pytest
import torch

from optpipe.tracing.export import functional, quiet
from optpipe.tracing.normalize import normalize


def _graph_of(module, *example):
    """A module over [1, T, ·] as the tracer's steps get it."""
    tokens = torch.export.Dim("T", min=2, max=64)
    shapes = tuple({1: tokens} for _ in example)
    with quiet():
        program = torch.export.export(module, example, dynamic_shapes=shapes, strict=False)
        gm, _ = normalize(functional(program), {})
    gm.recompile()
    return gm


@pytest.fixture
def graph_of():
    return _graph_of
