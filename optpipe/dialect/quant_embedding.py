"""``quant_embedding``: an embedding table stored in 4 or 8 bits; only the rows asked for are widened."""

from __future__ import annotations

import torch

from .op import define
from .quant_linear import dequantize


def _fake(
    ids: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    minimum: torch.Tensor | None = None,
    *,
    bits: int,
    group: int,
) -> torch.Tensor:
    dtype = torch.promote_types(scale.dtype, torch.float32)
    return packed.new_empty((*ids.shape, packed.shape[1] * 32 // bits), dtype=dtype)


@define(
    "quant_embedding(Tensor ids, Tensor packed, Tensor scale, Tensor? minimum=None, *, int bits, int group)"
    " -> Tensor",
    fake=_fake,
)
def quant_embedding(
    ids: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    minimum: torch.Tensor | None = None,
    *,
    bits: int,
    group: int,
) -> torch.Tensor:
    """Look tokens up in a packed table.

    Args:
        ids: [T] int64.
        packed: [V, K·bits/32] int32.
        scale: [V, K/g].
        minimum: [V, K/g], or None for the symmetric grid.
        bits: 4 or 8.
        group: inputs that share a scale, g; −1 for one scale a row.

    Returns:
        [T, K] float32; float64 when the scale has it.

    Source: the grids of ``quant_linear``.
    """
    rows = None if minimum is None else minimum[ids]
    dtype = torch.promote_types(scale.dtype, torch.float32)
    return dequantize(packed[ids], scale[ids], rows, bits, dtype)
