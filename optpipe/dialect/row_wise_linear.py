"""``row_wise_linear``: a linear layer of 8-bit activations and 8-bit weights, one scale a row of each.

    s[t] = max |x[t]| / L        c[t, k] = round(x[t, k] / s[t])        s = 1 for a row of zeros
    y[t, n] = s[t] · scale[n] · Σ c[t, k] · W[n, k] + bias[n]

    weight   rounding of activations                                   L
    i8       to the nearest integer, halves to even (``w8a8``)         127
    f8       to the nearest float8 e4m3, halves to even (``fp8``)      448

Unlike ``quant_linear``'s, the body rounds activations: what it computes is what the kernels compute. A
rounding is a step, so noise of 1e-7 in ``x`` can move a product by a whole code. ``smooth`` is the same
layer without it, for comparing graphs that must be equal.
"""

from __future__ import annotations

import torch

from ..errors import KernelError
from .op import accumulator, define

LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
"""The largest code of each type of weight, and of the activations that meet it."""


def rounded_rows(x: torch.Tensor, kind: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes [..., K] and scale [..., 1] of rows x [..., K], both in ``x``'s dtype.

    Args:
        kind: of the codes, a key of ``LARGEST``.
    """
    largest = LARGEST[kind]
    peak = x.abs().amax(-1, keepdim=True)
    scale = torch.where(peak > 0, peak * (1.0 / largest), 1.0)
    codes = (x / scale).clamp(-largest, largest)
    return codes.round() if kind == torch.int8 else codes.to(kind).to(x.dtype), scale


def _fake(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    if weight.dtype not in LARGEST or scale.shape != (weight.shape[0], 1):
        raise KernelError(
            f"row_wise_linear takes rows of int8 or float8 e4m3 with a scale each, got a weight"
            f" {tuple(weight.shape)} of {weight.dtype} and a scale {tuple(scale.shape)}"
        )
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


@define("row_wise_linear(Tensor x, Tensor weight, Tensor scale, Tensor? bias=None) -> Tensor", fake=_fake)
def row_wise_linear(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Linear layer over rows of 8 bits.

    Args:
        x: [..., K].
        weight: [N, K] int8 or float8 e4m3.
        scale: [N, 1].
        bias: [N] or None.

    Returns:
        [..., N], in ``x``'s dtype.

    Source: compressed-tensors' ``int-quantized`` and ``float-quantized`` with a scale a channel and a token.
    """
    codes, row_scale = rounded_rows(x.to(accumulator(x)), weight.dtype)
    return smooth(codes, weight, scale, bias, row_scale).to(x.dtype)


def smooth(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    row_scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """The layer of activations [..., K] as they are: [..., N].

    Args:
        weight, scale, bias: as for ``row_wise_linear``.
        row_scale: [..., 1], what rows are multiplied by; None for nothing.
    """
    wide = accumulator(x)
    out = torch.nn.functional.linear(x.to(wide), weight.to(wide))
    out = out * (scale.to(wide).T if row_scale is None else row_scale * scale.to(wide).T)
    return (out if bias is None else out + bias.to(wide)).to(x.dtype)
