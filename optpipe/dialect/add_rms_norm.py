"""``add_rms_norm``: residual add and the norm that follows it, in one read of the residual stream.

s = x + residual        y = rms_norm(s)        returns (y, s)
"""

from __future__ import annotations

import torch

from .op import accumulator, define
from .rms_norm import normalize


def _fake(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor | None,
    *,
    eps: float,
    unit_offset: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    total = torch.empty_like(x, memory_format=torch.contiguous_format)
    return torch.empty_like(total), total


@define(
    "add_rms_norm(Tensor x, Tensor residual, Tensor? weight, *, float eps, bool unit_offset=False)"
    " -> (Tensor, Tensor)",
    fake=_fake,
)
def add_rms_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor | None,
    *,
    eps: float,
    unit_offset: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add a branch to the residual stream and norm the sum.

    Args:
        x: [..., K], the branch.
        residual: [..., K], the stream.
        weight: [K], or None for a norm without a scale.
        eps: added to the mean square.
        unit_offset: the scale is ``1 + weight``.

    Returns:
        The normed sum and the sum, both [..., K] in ``x``'s dtype.

    Source: the fused form that serving engines share; the norm is Zhang and Sennrich 2019.
    """
    total = (x.to(accumulator(x)) + residual).to(x.dtype)
    return normalize(total, weight, eps, unit_offset), total
