import pytest
import torch

from optpipe.weights import GridInfo, QuantizedTensor


def grid(*, minimum: bool, group: int = 2) -> QuantizedTensor:
    codes = torch.tensor([[0, 8, 15, 7], [1, 2, 3, 4]], dtype=torch.uint8)
    groups = 1 if group == -1 else 4 // group
    scale = torch.full((2, groups), 0.5, dtype=torch.float16)
    return QuantizedTensor(codes, scale, -scale * 3 if minimum else None, 4, group)


def test_symmetric_codes_are_centred_on_half_the_range():
    assert grid(minimum=False).dequantize().tolist() == [[-4.0, 0.0, 3.5, -0.5], [-3.5, -3.0, -2.5, -2.0]]


def test_a_minimum_is_added_after_the_scale():
    assert grid(minimum=True).dequantize().tolist() == [[-1.5, 2.5, 6.0, 2.0], [-1.0, -0.5, 0.0, 0.5]]


def test_minus_one_is_one_group_a_row():
    blocks = grid(minimum=True, group=-1)
    assert blocks.group_size == 4
    assert blocks.info == GridInfo(4, -1, has_minimum=True)
    assert torch.equal(blocks.dequantize(), grid(minimum=True).dequantize())


def test_values_are_float32_whatever_the_scale_is():
    assert grid(minimum=False).dequantize().dtype == torch.float32


def test_each_moves_codes_and_grid_together():
    flipped = grid(minimum=True).each(lambda part: part.flip(0))
    assert torch.equal(flipped.dequantize(), grid(minimum=True).dequantize().flip(0))


def test_experts_are_leading_dimensions():
    one = grid(minimum=True)
    stacked = one.each(lambda part: torch.stack([part, part]))
    assert torch.equal(stacked.dequantize(), torch.stack([one.dequantize()] * 2))


def test_a_scale_that_does_not_fit_the_codes_is_our_own_mistake():
    with pytest.raises(AssertionError, match="columns = 4"):
        QuantizedTensor(torch.zeros(2, 4, dtype=torch.uint8), torch.ones(2, 3), None, 4, 2)
