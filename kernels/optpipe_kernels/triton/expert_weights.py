"""Projections of routed experts as their kernels read them, made once when a model is loaded."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .packing import QuantWeight, repack


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """One projection of every expert in the activations' type.

    Attributes:
        weight: [E, N, K], of any strides.
        bias: [E, N] or None.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """E, N, K."""
        experts, rows, columns = self.weight.shape
        return experts, rows, columns


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """One projection of every expert in 4 or 8 bits; gate's rows come before up's.

    Attributes:
        parts: what ``packing.repack`` made of each expert, stacked along the tensors' first dimension.
        experts: E.
        bias: [E, N] or None.
    """

    parts: QuantWeight
    experts: int
    bias: torch.Tensor | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """E, N, K."""
        return self.experts, self.parts.rows, self.parts.columns


Projection = Dense | Packed


def pack(
    packed: torch.Tensor,
    scale: torch.Tensor,
    minimum: torch.Tensor | None,
    bias: torch.Tensor | None,
    *,
    bits: int,
    group: int,
    dtype: torch.dtype,
    interleaved: bool = False,
) -> Packed:
    """A stored projection in the kernels' layout, made once when a model is loaded.

    Args:
        packed: [E, N, K·bits/32] int32.
        scale, minimum: [E, N, K/g].
        bias: [E, N] or None.
        bits, group: as for ``quant_linear``.
        dtype: of the activations.
        interleaved: rows of gate and up alternate; they are put one half after the other.
    """
    made = []
    for expert in range(packed.shape[0]):
        low = None if minimum is None else _halves(minimum[expert], interleaved)
        made.append(
            repack(
                _halves(packed[expert], interleaved), _halves(scale[expert], interleaved), low,
                bits=bits, group=group, dtype=dtype,
            )
        )  # fmt: skip
    one = made[0]

    def stacked(name: str) -> torch.Tensor | None:
        return None if getattr(one, name) is None else torch.stack([getattr(it, name) for it in made])

    codes = stacked("codes")
    assert codes is not None
    whole = QuantWeight(
        codes, stacked("grid"), stacked("scale"), one.rows, one.columns, one.bits, one.group,
        one.has_minimum, one.dtype,
    )  # fmt: skip
    straight = None if bias is None else torch.stack([_halves(it, interleaved) for it in bias])
    return Packed(whole, packed.shape[0], straight)


def _halves(rows: torch.Tensor, interleaved: bool) -> torch.Tensor:
    """Rows 0, 2, 4, … and then 1, 3, 5, …, contiguous."""
    return (torch.cat((rows[0::2], rows[1::2])) if interleaved else rows).contiguous()
