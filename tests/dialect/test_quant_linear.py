"""``quant_linear`` against weights unpacked element by element."""

import pytest
import torch

from optpipe.dialect.quant_linear import dequantize, quant_linear, unpack
from optpipe.testing import tolerance

GRIDS = [(bits, group, minimum) for bits in (4, 8) for group in (-1, 32) for minimum in (False, True)]


@pytest.mark.parametrize(("bits", "group", "minimum"), GRIDS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("lead", [(1,), (5,), (2, 3)], ids=str)
def test_is_a_linear_layer_of_the_values(randn, quantized, bits, group, minimum, bias, lead):
    packed, scale, low, values = quantized(7, 96, bits=bits, group=group, minimum=minimum)
    x, b = randn(*lead, 96), randn(7) if bias else None
    expected = (x.double() @ values.T + (0 if b is None else b.double())).float()
    found = quant_linear(x, packed, scale, low, b, bits=bits, group=group)
    torch.testing.assert_close(found, expected, **tolerance("float32 sum"))


@pytest.mark.parametrize(("bits", "group", "minimum"), GRIDS)
def test_values_are_exact_in_float64(quantized, bits, group, minimum):
    packed, scale, low, values = quantized(3, 64, bits=bits, group=group, minimum=minimum)
    torch.testing.assert_close(
        dequantize(packed, scale, low, bits, torch.float64), values, **tolerance("float64")
    )


def test_codes_lie_little_end_first():
    assert unpack(torch.tensor([[0x76543210]], dtype=torch.int32), 4).tolist() == [[0, 1, 2, 3, 4, 5, 6, 7]]
    assert unpack(torch.tensor([[0x03020100]], dtype=torch.int32), 8).tolist() == [[0, 1, 2, 3]]
    assert unpack(torch.tensor([[-1]], dtype=torch.int32), 4).tolist() == [[15] * 8]


def test_float16_scales_are_widened_before_they_multiply(randn, quantized):
    packed, scale, _, _ = quantized(4, 32, bits=8, group=-1, minimum=False)
    x = randn(2, 32)
    half = scale.half() * 600  # 127 · 60 is still a float16, but its steps there are 4 wide
    assert quant_linear(x, packed, half, bits=8, group=-1).equal(
        quant_linear(x, packed, half.float(), bits=8, group=-1)
    )


def test_words_that_do_not_lie_in_a_row_are_read_right(randn, quantized):
    packed, scale, _, _ = quantized(8, 64, bits=4, group=32, minimum=False)
    strided = packed.T.contiguous().T
    assert not strided.is_contiguous()
    x = randn(2, 64)
    assert quant_linear(x, strided, scale, bits=4, group=32).equal(
        quant_linear(x, packed, scale, bits=4, group=32)
    )
