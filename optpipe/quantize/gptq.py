"""GPTQ-style error compensation: what rounding one input's weights gets wrong, later inputs make good.

With H = Xᵀ·X over the layer's inputs, the error that matters is tr((W − Ŵ)·H·(W − Ŵ)ᵀ). Inputs are rounded
one by one, the largest H[k, k] first; the error of each is spread over those not yet rounded, by the rows
of U where H⁻¹ = Uᵀ·U:

    e = (w_k − ŵ_k) / U[k, k]         w_j ← w_j − e · U[k, j]      for all j after k

Groups keep the checkpoint's order of inputs, so nothing has to be permuted at run time; their scales are
chosen before the first rounding, from a few shrunken ranges, by the error weighted with diag(H).

Measured on SmolLM2, symmetric 4 bits in groups of 32, 16 windows of calibration: KL 0.27 without
compensation, 0.13 in the checkpoint's order, 0.08 in this order. Feeding layers the inputs that quantized
predecessors give changes that by less than 0.004. On Gemma-3-270M, float minimum: 0.40 without, 0.143 with 8
windows, 0.115 with 16, 0.107 with 32.

Source: Frantar et al. 2023, "GPTQ", and the activation order of its reference code.
"""

from __future__ import annotations

import functools

import torch

from optpipe.quantize.rtn import fit, grouped, joined, stored
from optpipe.weights.grid import GridInfo, QuantizedTensor

DAMPING = 0.01  # of the mean of diag(H)
_SHRINK = (1.1, 1.05, 1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)  # of the range that just covers the group
_BLOCK = 128  # inputs whose spreading is deferred into one matrix product
_ROWS = 8192  # outputs worked on at once: they do not interact


class Hessian:
    """Xᵀ·X over everything a layer was fed.

    Attributes:
        matrix: [K, K] float32.
        tokens: rows of X so far.
    """

    def __init__(self, columns: int) -> None:
        self.matrix = torch.zeros(columns, columns)
        self.tokens = 0

    def update(self, inputs: torch.Tensor) -> None:
        """Add inputs [..., K]."""
        assert "spread" not in self.__dict__, "a Hessian that was used gets no more inputs"
        rows = inputs.reshape(-1, inputs.shape[-1]).float()
        self.matrix.addmm_(rows.T, rows)
        self.tokens += rows.shape[0]

    @functools.cached_property
    def order(self) -> torch.Tensor:
        """[K], the inputs from the loudest to the quietest."""
        return torch.argsort(self.matrix.diagonal(), descending=True, stable=True)

    @functools.cached_property
    def spread(self) -> torch.Tensor:
        """[K, K] float32, U of the module's formula, in ``order``. Layers with the same inputs share it."""
        return _spread(self.matrix[self.order][:, self.order])


def compensate(weight: torch.Tensor, hessian: Hessian, grid: GridInfo) -> QuantizedTensor:
    """Put a weight on a grid so that the layer's outputs change little on the calibration inputs.

    Args:
        weight: [N, K].
        hessian: of the layer's inputs; without any, weights are rounded to the nearest.
        grid: the target; see ``rtn.why_not``.
    """
    assert len(hessian.matrix) == weight.shape[1], f"{len(hessian.matrix) = } {weight.shape = }"
    return joined([_compensate_rows(rows, hessian, grid) for rows in weight.split(_ROWS)])


def _compensate_rows(weight: torch.Tensor, hessian: Hessian, grid: GridInfo) -> QuantizedTensor:
    scale, minimum = search(weight, hessian.matrix.diagonal(), grid)
    step, low = _steps(scale, minimum, grid)
    width = weight.shape[1] if grid.group == -1 else grid.group
    order = hessian.order
    step, low = (part.repeat_interleave(width, dim=1).T[order] for part in (step, low))
    codes = torch.empty(weight.shape[1], weight.shape[0], dtype=torch.uint8)  # [K, N]: an input is one run
    codes[order] = _round_in_turn(weight.float().T[order], step, low, hessian.spread, 2**grid.bits - 1)
    return QuantizedTensor(codes.T.contiguous(), scale, minimum, grid.bits, grid.group)


def _round_in_turn(
    weight: torch.Tensor, step: torch.Tensor, low: torch.Tensor, spread: torch.Tensor, largest: int
) -> torch.Tensor:
    """Codes [K, N] of a weight [K, N], which is overwritten; U = ``spread`` [K, K]."""
    codes = torch.empty(weight.shape, dtype=torch.uint8)
    columns = weight.shape[0]
    for start in range(0, columns, _BLOCK):
        stop = min(start + _BLOCK, columns)
        errors = torch.empty_like(weight[start:stop])
        for k in range(start, stop):
            code = ((weight[k] - low[k]) / step[k]).round_().clamp_(0, largest)
            codes[k] = code.to(torch.uint8)
            error = (weight[k] - (code * step[k] + low[k])) / spread[k, k]
            errors[k - start] = error
            weight[k + 1 : stop].addr_(spread[k, k + 1 : stop], error, alpha=-1)
        weight[stop:].addmm_(spread[start:stop, stop:].T, errors, alpha=-1)
    return codes


def search(
    weight: torch.Tensor, importance: torch.Tensor, grid: GridInfo
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Scale and minimum whose rounding errors, weighted by ``importance`` [K], are smallest a group.

    Tries the covering range shrunk by a few factors, because a clipped outlier can cost less than a coarse
    step for the rest, and both signs of a symmetric 4-bit scale: one side of that grid reaches further.
    """
    weights = grouped(importance[None], grid.group)
    target = grouped(weight, grid.group)
    first, *others = _candidates(weight, grid)
    best = _error(target, weights, first, grid)
    scale, minimum = (None if part is None else part.float() for part in first)
    assert scale is not None
    for candidate in others:
        error = _error(target, weights, candidate, grid)
        better = error < best
        best = torch.where(better, error, best)
        scale = torch.where(better, candidate[0].float(), scale)
        if minimum is not None and candidate[1] is not None:
            minimum = torch.where(better, candidate[1].float(), minimum)
    return stored(scale, minimum)


def _error(
    target: torch.Tensor,
    weights: torch.Tensor,
    candidate: tuple[torch.Tensor, torch.Tensor | None],
    grid: GridInfo,
) -> torch.Tensor:
    """Weighted squared error a group, [N, K/g], of rounding ``target`` [N, K/g, g]."""
    step, low = (part.unsqueeze(-1) for part in _steps(*candidate, grid))
    codes = (target - low).div_(step).round_().clamp_(0, 2**grid.bits - 1)
    error = codes.mul_(step).add_(low).sub_(target)
    return error.square_().mul_(weights).sum(-1)


def _steps(
    scale: torch.Tensor, minimum: torch.Tensor | None, grid: GridInfo
) -> tuple[torch.Tensor, torch.Tensor]:
    """Float32 (step, low) with value = code · step + low on either kind of grid; no step is zero."""
    step = scale.float()
    low = step * -(2 ** (grid.bits - 1)) if minimum is None else minimum.float()
    return torch.where(step == 0, 1.0, step), low


def _candidates(weight: torch.Tensor, grid: GridInfo) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    scale, minimum = fit(weight, grid)
    wide = scale.float()
    if minimum is None:
        signs = (1.0, -1.0) if grid.bits == 4 else (1.0,)
        return [stored(wide * (factor * sign), None) for factor in _SHRINK for sign in signs]
    half = (2**grid.bits - 1) / 2
    middle = minimum.float() + wide * half
    return [stored(wide * factor, middle - wide * (half * factor)) for factor in _SHRINK]


def _spread(hessian: torch.Tensor) -> torch.Tensor:
    """U, upper triangular, with (H + damping)⁻¹ = Uᵀ·U. float32 [K, K].

    H reversed in both dimensions is L·Lᵀ, so H = R·Rᵀ with R = L reversed, upper triangular, and U = R⁻¹:
    no inverse of H itself is formed. In float64: H of correlated inputs is nearly singular.
    """
    mean = float(hessian.diagonal().mean())
    damping = DAMPING * mean if mean > 0 else 1.0
    while True:
        damped = hessian.double()
        damped.diagonal().add_(damping)
        factor, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
        del damped  # 1.6 GB for a layer of 14,336 inputs, and so is each of the following
        if not int(failed):
            break
        damping *= 10
    upper = factor.flip(0, 1)
    del factor
    identity = torch.eye(len(upper), dtype=torch.float64)
    inverse: torch.Tensor = torch.linalg.solve_triangular(upper, identity, upper=True)
    return inverse.float()
