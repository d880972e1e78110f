"""``quant_linear``: a linear layer whose weight is stored in 4 or 8 bits.

    y = x · Wᵀ + bias        W[n, k] = (u[n, k] − 2^(bits−1)) · scale[n, k // g]          symmetric
                             W[n, k] = u[n, k] · scale[n, k // g] + minimum[n, k // g]    float minimum

The codes u are unsigned and packed little end first, 32 / bits to an int32 word. Whether activations are
rounded too is the kernel's choice within its target's contract; the body does not.
"""

from __future__ import annotations

import torch

from .op import accumulator, define


def unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes [..., K] as uint8 from words [..., K·bits/32]. int32."""
    pairs: torch.Tensor = packed.contiguous().view(torch.uint8)
    if bits == 8:
        return pairs
    codes: torch.Tensor = torch.stack((pairs & 15, pairs >> 4), dim=-1).flatten(-2)
    return codes


def dequantize(
    packed: torch.Tensor, scale: torch.Tensor, minimum: torch.Tensor | None, bits: int, dtype: torch.dtype
) -> torch.Tensor:
    """The weight's values: [..., N, K] in ``dtype``; the group width is K over the columns of ``scale``."""
    codes = unpack(packed, bits)
    groups = scale.shape[-1]
    value = codes.to(dtype).unflatten(-1, (groups, -1))
    if minimum is None:
        value = value.sub_(1 << (bits - 1)).mul_(scale.to(dtype).unsqueeze(-1))
    else:
        value = value.mul_(scale.to(dtype).unsqueeze(-1)).add_(minimum.to(dtype).unsqueeze(-1))
    whole: torch.Tensor = value.flatten(-2)
    return whole


def _fake(
    x: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    minimum: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    bits: int,
    group: int,
) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], packed.shape[0]))


@define(
    "quant_linear(Tensor x, Tensor packed, Tensor scale, Tensor? minimum=None, Tensor? bias=None, *,"
    " int bits, int group) -> Tensor",
    fake=_fake,
)
def quant_linear(
    x: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    minimum: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    bits: int,
    group: int,
) -> torch.Tensor:
    """Linear layer over packed weights.

    Args:
        x: [..., K].
        packed: [N, K·bits/32] int32.
        scale: [N, K/g].
        minimum: [N, K/g], or None for the symmetric grid.
        bias: [N] or None.
        bits: 4 or 8.
        group: inputs that share a scale, g; −1 for one scale a row.

    Returns:
        [..., N], in ``x``'s dtype.

    Source: the symmetric form is compressed-tensors' ``pack-quantized``; the other is GGUF's Q4_1 grid.
    """
    return product(x, dequantize(packed, scale, minimum, bits, accumulator(x)), bias)


def product(x: torch.Tensor, values: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The second half of the body: x · valuesᵀ + bias, in the dtype of ``values`` and rounded to ``x``'s."""
    wide = values.dtype
    out = torch.nn.functional.linear(x.to(wide), values, None if bias is None else bias.to(wide))
    return out.to(x.dtype)
