"""Error compensation: better than rounding where it counts, and never unstable."""

from __future__ import annotations

import pytest
import torch

from optpipe.quantize.gptq import Hessian, _spread, compensate, search
from optpipe.quantize.rtn import round_to_nearest
from optpipe.weights.grid import GridInfo, QuantizedTensor

GRIDS = [GridInfo(4, 32, False), GridInfo(4, 32, True), GridInfo(4, -1, False), GridInfo(8, -1, False)]


def inputs(tokens: int, columns: int) -> torch.Tensor:
    """Correlated inputs with a few loud channels, as layers have them."""
    generator = torch.Generator().manual_seed(1)
    mixed = torch.randn(tokens, columns // 4, generator=generator) @ torch.randn(
        columns // 4, columns, generator=generator
    )
    loud = torch.ones(columns)
    loud[::17] = 20.0
    return (mixed + 0.3 * torch.randn(tokens, columns, generator=generator)) * loud


def hessian_of(x: torch.Tensor) -> Hessian:
    hessian = Hessian(x.shape[-1])
    hessian.update(x)
    return hessian


def weight(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(2)) * 0.02


def output_error(made: QuantizedTensor, values: torch.Tensor, x: torch.Tensor) -> float:
    return float((x @ (made.dequantize() - values).T).square().mean())


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_beats_rounding_on_the_layers_outputs(grid: GridInfo) -> None:
    (x, held_out), values = inputs(2048, 160).split(1024), weight(48, 160)
    made = compensate(values, hessian_of(x), grid)
    assert made.info == grid
    rounded = output_error(round_to_nearest(values, grid), values, held_out)
    assert output_error(made, values, held_out) < 0.6 * rounded


def test_without_calibration_it_rounds_to_the_searched_grid() -> None:
    values, grid = weight(16, 64), GridInfo(4, 32, True)
    made = compensate(values, Hessian(64), grid)
    error = (made.dequantize() - values).square().sum()
    assert float(error) <= 1.5 * float((round_to_nearest(values, grid).dequantize() - values).square().sum())


def test_inputs_that_are_always_zero_do_no_harm() -> None:
    x, values = inputs(256, 96), weight(24, 96)
    x[:, 32:64] = 0
    made = compensate(values, hessian_of(x), GridInfo(4, 32, False))
    assert bool(torch.isfinite(made.dequantize()).all())
    assert output_error(made, values, x) < output_error(round_to_nearest(values, made.info), values, x)


def test_fewer_tokens_than_inputs_is_stable() -> None:
    x, values = inputs(8, 128), weight(8, 128)
    made = compensate(values, hessian_of(x), GridInfo(4, 32, False))
    assert float((made.dequantize() - values).abs().max()) < 0.1


def test_many_rows_equal_the_same_rows_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    x, values, grid = inputs(128, 64), weight(10, 64), GridInfo(4, 32, True)
    whole = compensate(values, hessian_of(x), grid)
    monkeypatch.setattr("optpipe.quantize.gptq._ROWS", 4)
    parts = compensate(values, hessian_of(x), grid)
    assert torch.equal(whole.codes, parts.codes)
    assert torch.equal(whole.dequantize(), parts.dequantize())


def test_search_is_no_worse_than_the_covering_range() -> None:
    values, importance, grid = weight(32, 64), torch.rand(64) + 0.1, GridInfo(4, 32, False)

    def error(scale: torch.Tensor) -> float:
        from optpipe.quantize.rtn import assign

        return float(((assign(values, scale, None, grid).dequantize() - values).square() * importance).sum())

    scale, _ = search(values, importance, grid)
    assert error(scale) < error(round_to_nearest(values, grid).scale)


def test_spread_factors_the_damped_inverse() -> None:
    hessian = hessian_of(inputs(256, 48)).matrix
    upper = _spread(hessian).double()
    damped = hessian.double() + torch.eye(48) * 0.01 * hessian.double().diagonal().mean()
    assert torch.equal(upper, upper.triu())
    torch.testing.assert_close(upper.T @ upper @ damped, torch.eye(48).double(), atol=1e-3, rtol=0)


def test_hessian_adds_up_over_updates() -> None:
    x = inputs(64, 32)
    hessian = Hessian(32)
    hessian.update(x[:20].view(4, 5, 32))
    hessian.update(x[20:])
    assert hessian.tokens == 64
    torch.testing.assert_close(hessian.matrix, x.T @ x, rtol=1e-4, atol=1e-2)
