"""``layer_norm``: centre a row and scale it by its standard deviation.

y = (x − mean(x)) / sqrt(var(x) + eps) · w + b            var is the biased variance
"""

from __future__ import annotations

import torch

from .op import accumulator, define


def _fake(
    x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, *, eps: float
) -> torch.Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@define("layer_norm(Tensor x, Tensor? weight, Tensor? bias, *, float eps) -> Tensor", fake=_fake)
def layer_norm(
    x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, *, eps: float
) -> torch.Tensor:
    """Layer norm over the last dimension.

    Args:
        x: [..., K].
        weight: [K] or None; broadcast over heads when it is [H, K].
        bias: [K] or None.
        eps: added to the variance.

    Returns:
        [..., K], in ``x``'s dtype.

    Source: Ba, Kiros and Hinton 2016, "Layer Normalization".
    """
    wide = x.to(accumulator(x))
    centred = wide - wide.mean(-1, keepdim=True)
    wide = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    if weight is not None:
        wide = wide * weight.to(wide.dtype)
    if bias is not None:
        wide = wide + bias.to(wide.dtype)
    return wide.to(x.dtype)
