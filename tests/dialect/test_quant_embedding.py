"""``quant_embedding`` gives rows of the unpacked table."""

import pytest
import torch

from optpipe.dialect.quant_embedding import quant_embedding
from optpipe.testing import tolerance


@pytest.mark.parametrize(
    ("bits", "group", "minimum"), [(4, 32, True), (4, -1, False), (8, -1, False), (8, 32, True)]
)
def test_is_a_lookup_in_the_values(quantized, bits, group, minimum):
    packed, scale, low, values = quantized(11, 96, bits=bits, group=group, minimum=minimum)
    ids = torch.tensor([10, 0, 3, 3])
    found = quant_embedding(ids, packed, scale, low, bits=bits, group=group)
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, values[ids].float(), **tolerance("float32"))


def test_half_scales_give_float32(quantized):
    packed, scale, _, _ = quantized(4, 32, bits=4, group=32, minimum=False)
    assert quant_embedding(torch.tensor([1]), packed, scale.half(), bits=4, group=32).dtype is torch.float32
