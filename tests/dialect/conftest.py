"""Random operands, and packing written down independently of the dialect."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def randn():
    """Normal numbers of a shape, the same in every run."""
    generator = torch.Generator().manual_seed(0)
    return lambda *shape, dtype=torch.float32: torch.randn(*shape, generator=generator).to(dtype)


@pytest.fixture
def quantized():
    """(rows…, K) and a grid → words, scale, minimum, and the values as float64, element by element."""

    def make(*shape, bits, group, minimum):
        generator = torch.Generator().manual_seed(sum(shape) + bits)
        columns = shape[-1]
        width = columns if group == -1 else group
        codes = torch.randint(0, 1 << bits, shape, generator=generator)
        scale = torch.rand(*shape[:-1], columns // width, generator=generator) * 0.1 + 0.01
        low = torch.randn(scale.shape, generator=generator) if minimum else None
        words = torch.zeros(*shape[:-1], columns * bits // 32, dtype=torch.int64)
        values = torch.zeros(shape, dtype=torch.float64)
        for k in range(columns):
            per_word = 32 // bits
            words[..., k // per_word] |= codes[..., k] << (bits * (k % per_word))
            s = scale[..., k // width].double()
            if low is None:
                values[..., k] = (codes[..., k] - 2 ** (bits - 1)) * s
            else:
                values[..., k] = codes[..., k] * s + low[..., k // width].double()
        signed = torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)
        return signed, scale, low, values

    return make
