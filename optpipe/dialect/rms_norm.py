"""``rms_norm``: scale a row by the inverse of its root mean square.

y = x / sqrt(mean(x²) + eps) · (w + offset)          offset = 1 when unit_offset, else 0
"""

from __future__ import annotations

import torch

from .op import accumulator, define


def normalize(x: torch.Tensor, weight: torch.Tensor | None, eps: float, unit_offset: bool) -> torch.Tensor:
    """The formula above, in the accumulator's dtype throughout and rounded once at the end."""
    wide = x.to(accumulator(x))
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    if weight is not None:
        scale = weight.to(wide.dtype)
        wide = wide * (scale + 1 if unit_offset else scale)
    return wide.to(x.dtype)


def _fake(
    x: torch.Tensor, weight: torch.Tensor | None, *, eps: float, unit_offset: bool = False
) -> torch.Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@define("rms_norm(Tensor x, Tensor? weight, *, float eps, bool unit_offset=False) -> Tensor", fake=_fake)
def rms_norm(
    x: torch.Tensor, weight: torch.Tensor | None, *, eps: float, unit_offset: bool = False
) -> torch.Tensor:
    """Root-mean-square norm over the last dimension.

    Args:
        x: [..., K].
        weight: [K], or None for a norm without a scale.
        eps: added to the mean square.
        unit_offset: the scale is ``1 + weight`` (Gemma).

    Returns:
        [..., K], in ``x``'s dtype.

    Source: Zhang and Sennrich 2019, "Root Mean Square Layer Normalization", equation 4.
    """
    return normalize(x, weight, eps, unit_offset)
