"""``quant_moe``: routed experts whose projections are stored in 4 or 8 bits, on ``quant_linear``'s grids."""

from __future__ import annotations

import torch

from .moe import ExpertLinear, Gating, route
from .op import accumulator, define
from .quant_linear import dequantize


def _fake(
    x: torch.Tensor,
    experts: torch.Tensor,
    weights: torch.Tensor,
    gate_up: torch.Tensor,
    gate_up_scale: torch.Tensor,
    gate_up_minimum: torch.Tensor | None,
    down: torch.Tensor,
    down_scale: torch.Tensor,
    down_minimum: torch.Tensor | None,
    gate_up_bias: torch.Tensor | None = None,
    down_bias: torch.Tensor | None = None,
    *,
    bits: int,
    group: int,
    kind: str,
    gated: bool = True,
    interleaved: bool = False,
    limit: float | None = None,
    alpha: float | None = None,
    up_offset: float = 0.0,
) -> torch.Tensor:
    return x.new_empty((x.shape[0], down.shape[1]))


@define(
    "quant_moe(Tensor x, Tensor experts, Tensor weights, Tensor gate_up, Tensor gate_up_scale,"
    " Tensor? gate_up_minimum, Tensor down, Tensor down_scale, Tensor? down_minimum,"
    " Tensor? gate_up_bias=None, Tensor? down_bias=None, *, int bits, int group, str kind, bool gated=True,"
    " bool interleaved=False, float? limit=None, float? alpha=None, float up_offset=0.0) -> Tensor",
    fake=_fake,
)
def quant_moe(
    x: torch.Tensor,
    experts: torch.Tensor,
    weights: torch.Tensor,
    gate_up: torch.Tensor,
    gate_up_scale: torch.Tensor,
    gate_up_minimum: torch.Tensor | None,
    down: torch.Tensor,
    down_scale: torch.Tensor,
    down_minimum: torch.Tensor | None,
    gate_up_bias: torch.Tensor | None = None,
    down_bias: torch.Tensor | None = None,
    *,
    bits: int,
    group: int,
    kind: str,
    gated: bool = True,
    interleaved: bool = False,
    limit: float | None = None,
    alpha: float | None = None,
    up_offset: float = 0.0,
) -> torch.Tensor:
    """Routed experts over packed weights.

    Args:
        x: [T, K].
        experts: [T, S] int64.
        weights: [T, S].
        gate_up: [E, 2·I, K·bits/32] int32, always output first.
        gate_up_scale, gate_up_minimum: [E, 2·I, K/g]; the minimum is None on the symmetric grid.
        down: [E, K, I·bits/32] int32.
        down_scale, down_minimum: [E, K, I/g].
        gate_up_bias: [E, 2·I] or None.
        down_bias: [E, K] or None.
        bits, group: as for ``quant_linear``.
        kind, gated, interleaved, limit, alpha, up_offset: as for ``moe``.

    Returns:
        [T, K], in ``x``'s dtype.

    Source: ``moe`` and ``quant_linear``.
    """
    wide = accumulator(x)

    def linear(
        packed: torch.Tensor, scale: torch.Tensor, minimum: torch.Tensor | None, bias: torch.Tensor | None
    ) -> ExpertLinear:
        def run(expert: int, rows: torch.Tensor) -> torch.Tensor:
            low = None if minimum is None else minimum[expert]
            out = rows @ dequantize(packed[expert], scale[expert], low, bits, wide).T
            return out if bias is None else out + bias[expert].to(wide)

        return run

    gating = Gating(kind, gated, interleaved, limit, alpha, up_offset)
    first = linear(gate_up, gate_up_scale, gate_up_minimum, gate_up_bias)
    second = linear(down, down_scale, down_minimum, down_bias)
    return route(x, experts, weights, down.shape[0], gating, first, second)
