"""``rope``: rotary position embedding of the first ``rotary_dim`` channels of every head.

    y = x · cos + rotate(x) · sin

    halves:       rotate(x)[d] = −x[d + R/2] for d < R/2, else x[d − R/2]        (Llama, GPT-NeoX)
    interleaved:  rotate(x)[2i] = −x[2i + 1],  rotate(x)[2i + 1] = x[2i]         (GPT-J, Cohere)

R = rotary_dim = the width of ``cos``; channels past it pass through.
"""

from __future__ import annotations

import torch

from .op import accumulator, define


def _rotate(x: torch.Tensor, interleaved: bool) -> torch.Tensor:
    if interleaved:
        pairs = torch.stack((-x[..., 1::2], x[..., 0::2]), dim=-1)
        return pairs.flatten(-2)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def _fake(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, interleaved: bool = False
) -> torch.Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@define("rope(Tensor x, Tensor cos, Tensor sin, *, bool interleaved=False) -> Tensor", fake=_fake)
def rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, interleaved: bool = False) -> torch.Tensor:
    """Rotate queries or keys by their positions.

    Args:
        x: [T, H, D].
        cos: [T, R] with R ≤ D, one value a channel (both channels of a pair carry their own).
        sin: [T, R].
        interleaved: pairs are neighbours, not halves.

    Returns:
        [T, H, D], in ``x``'s dtype.

    Source: Su et al. 2021, "RoFormer", equation 34.
    """
    wide = torch.promote_types(accumulator(x), cos.dtype)
    width = cos.shape[-1]
    head = x[..., :width].to(wide)
    turned = head * cos.unsqueeze(-2).to(wide) + _rotate(head, interleaved) * sin.unsqueeze(-2).to(wide)
    return torch.cat((turned.to(x.dtype), x[..., width:]), dim=-1)
