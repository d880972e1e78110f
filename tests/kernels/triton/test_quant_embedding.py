from __future__ import annotations

import pytest
import torch

from optpipe.dialect import quant_embedding as plain
from optpipe_kernels.triton.quant_embedding import quant_embedding


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("minimum", [False, True])
@pytest.mark.parametrize("groups", [1, 5])
def test_equals_the_dialect(device, bits, minimum, groups):
    width = 40 * groups
    packed = torch.randint(-(2**31), 2**31, (9, width * bits // 32), dtype=torch.int64).int().to(device)
    scale = torch.rand(9, groups, device=device).half()
    low = torch.randn(9, groups, device=device).half() if minimum else None
    ids = torch.tensor([[3, 0], [8, 8]], device=device)
    kwargs = {"bits": bits, "group": width // groups if groups > 1 else -1}
    expected = plain.quant_embedding(ids, packed, scale, low, **kwargs)
    torch.testing.assert_close(
        quant_embedding(ids, packed, scale, low, **kwargs), expected, rtol=2e-7, atol=4e-6
    )
    rounded = quant_embedding(ids, packed, scale, low, **kwargs, dtype=torch.float16)
    torch.testing.assert_close(rounded, expected.half(), rtol=1e-3, atol=1e-3)


def test_wide_rows_and_ids_outside(device):
    packed = torch.randint(-(2**31), 2**31, (3, 300), dtype=torch.int64).int().to(device)
    scale = torch.ones(3, 1, device=device)
    ids = torch.tensor([2, 3, -1], device=device)
    found = quant_embedding(ids, packed, scale, bits=4, group=-1)
    assert torch.equal(found[0], plain.quant_embedding(ids[:1], packed, scale, bits=4, group=-1)[0])
    assert not found[1:].any()
