"""Round to nearest on every grid."""

from __future__ import annotations

import pytest
import torch

from optpipe.quantize.rtn import assign, fit, grouped, round_to_nearest, stored, why_not
from optpipe.weights.grid import GridInfo

GRIDS = [
    GridInfo(bits, group, minimum) for bits in (4, 8) for group in (-1, 32, 128) for minimum in (False, True)
]


def weight(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_error_is_at_most_a_step(grid: GridInfo) -> None:
    """Half a step, and up to a step at the short end of a symmetric 4-bit grid (7 against 8)."""
    values = weight(6, 256)
    made = round_to_nearest(values, grid)
    error = grouped(made.dequantize() - values, grid.group).abs()
    step = made.scale.float().abs().unsqueeze(-1)
    limit = 1.0 if grid.bits == 4 and not grid.has_minimum else 0.5
    assert bool((error <= step * (limit + 2**-7)).all())  # the rest: scale and minimum rounded to float16


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_values_of_a_grid_keep_it(grid: GridInfo) -> None:
    first = round_to_nearest(weight(4, 128), grid)
    again = assign(first.dequantize(), first.scale, first.minimum, grid)
    assert torch.equal(first.codes, again.codes)


def test_codes_are_chosen_against_the_stored_scale() -> None:
    """At each weight no neighbouring code is nearer, measured with the scale as stored."""
    values = weight(3, 64)
    made = round_to_nearest(values, GridInfo(8, 32, True))
    distance = (made.dequantize() - values).abs()
    for shift in (-1, 1):
        codes = (made.codes.int() + shift).clamp(0, 255).to(torch.uint8)
        moved = type(made)(codes, made.scale, made.minimum, 8, 32)
        assert bool((distance <= (moved.dequantize() - values).abs() + 1e-6).all())


def test_four_symmetric_bits_reach_the_extreme_on_either_side() -> None:
    values = torch.tensor([[1.0, -0.5] + [0.0] * 30, [-1.0, 0.5] + [0.0] * 30])
    made = round_to_nearest(values, GridInfo(4, 32, False))
    assert torch.equal(made.dequantize(), values)
    assert made.scale[:, 0].tolist() == [-0.125, 0.125]


def test_experts_are_quantized_each_by_itself() -> None:
    values = weight(3, 4, 64)
    grid = GridInfo(4, 32, True)
    whole = round_to_nearest(values, grid)
    assert whole.scale.shape == (3, 4, 2)
    assert torch.equal(whole.codes[1], round_to_nearest(values[1], grid).codes)


@pytest.mark.parametrize("minimum", [False, True])
def test_a_constant_group_is_exact(minimum: bool) -> None:
    values = torch.cat([torch.zeros(1, 32), torch.full((1, 32), 0.25), torch.full((1, 32), -3.0)])
    made = round_to_nearest(values, GridInfo(4, 32, minimum))
    assert torch.equal(made.dequantize(), values)


@pytest.mark.parametrize("minimum", [False, True])
@pytest.mark.parametrize("size", [1e-7, 1e7])
def test_scales_that_half_precision_cannot_hold_are_float32(size: float, minimum: bool) -> None:
    values = weight(2, 64) * size
    made = round_to_nearest(values, GridInfo(4, 32, minimum))
    assert made.scale.dtype == torch.float32
    assert made.minimum is None or made.minimum.dtype == torch.float32
    assert float((made.dequantize() - values).abs().max()) < 0.3 * size


def test_ordinary_scales_are_float16() -> None:
    scale, minimum = fit(weight(2, 64) * 0.02, GridInfo(4, 32, True))
    assert minimum is not None
    assert scale.dtype == minimum.dtype == torch.float16


def test_an_infinite_scale_is_not_stored_in_half() -> None:
    scale, _ = stored(torch.tensor([1e5]), None)
    assert scale.dtype == torch.float32


@pytest.mark.parametrize(
    ("columns", "grid", "reason"),
    [
        (100, GridInfo(4, 32, False), "not divisible into groups of 32"),
        (36, GridInfo(4, -1, False), "do not fill words of 8"),
        (34, GridInfo(8, -1, False), "do not fill words of 4"),
    ],
)
def test_says_why_a_weight_has_no_place_on_a_grid(columns: int, grid: GridInfo, reason: str) -> None:
    found = why_not(columns, grid)
    assert found is not None
    assert reason in found


def test_fitting_weights_have_no_reason() -> None:
    assert why_not(576, GridInfo(4, 32, True)) is None
    assert why_not(36, GridInfo(8, -1, False)) is None
