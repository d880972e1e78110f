"""Programs written as text, lowered."""

from __future__ import annotations

import pytest

from optpipe.program import parse_program
from optpipe_kernels.cpu.lowering.convert import convert
from optpipe_kernels.cpu.lowering.fuse import fuse
from optpipe_kernels.cpu.pack import quantized_bytes


@pytest.fixture
def converted():
    """Text → the lowering before any fusion."""
    return lambda text: convert(parse_program("optpipe.program 1\n" + text), quantized_bytes)


@pytest.fixture
def fused(converted):
    """Text → the lowering."""
    return lambda text: fuse(converted(text))


@pytest.fixture
def names():
    """A lowering → its kernels in order."""
    return lambda lowered: [step.kernel for step in lowered.steps]
