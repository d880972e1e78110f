"""Weights that live on a grid: small unsigned codes, and a scale (and minimum) a group.

    symmetric        value = (code - 2^(bits-1)) * scale
    with a minimum   value = code * scale + minimum

    codes    u8  [..., N, K]      code k of row n, in [0, 2^bits)
    scale    f16 [..., N, K/g]    one a group of g columns of a row; f32 where f16 is not exact
    minimum  as scale, or None

``group`` = -1 means one group a row (g = K). Leading dimensions are experts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class GridInfo:
    """What is known about a grid before anything is read."""

    bits: int
    group: int
    has_minimum: bool


@dataclass(frozen=True, slots=True)
class QuantizedTensor:
    """Codes and their grid, in memory. See the module for the meaning."""

    codes: torch.Tensor
    scale: torch.Tensor
    minimum: torch.Tensor | None
    bits: int
    group: int

    def __post_init__(self) -> None:
        columns = self.codes.shape[-1]
        groups = self.scale.shape[-1]
        assert self.codes.dtype == torch.uint8, f"{self.codes.dtype = } must be torch.uint8"
        assert groups * self.group_size == columns, f"{groups = } of {self.group_size} must make {columns = }"
        assert self.codes.shape[:-1] == self.scale.shape[:-1], f"{self.codes.shape = } {self.scale.shape = }"
        assert self.minimum is None or self.minimum.shape == self.scale.shape, f"{self.scale.shape = }"

    @property
    def group_size(self) -> int:
        """Columns a group, with -1 resolved."""
        return self.codes.shape[-1] if self.group == -1 else self.group

    @property
    def info(self) -> GridInfo:
        """What the grid is."""
        return GridInfo(self.bits, self.group, self.minimum is not None)

    def dequantize(self) -> torch.Tensor:
        """The values in float32, [..., N, K]: one product, then one sum, each rounded once."""
        grouped: torch.Tensor = self.codes.unflatten(-1, (-1, self.group_size)).to(torch.float32)
        scale = self.scale.to(torch.float32).unsqueeze(-1)
        if self.minimum is None:
            values: torch.Tensor = (grouped - float(1 << (self.bits - 1))) * scale
        else:
            values = (grouped * scale) + self.minimum.to(torch.float32).unsqueeze(-1)
        return values.flatten(-2)

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> QuantizedTensor:
        """The same grid with ``change`` done to codes, scale and minimum: rows taken, moved or joined."""
        minimum = None if self.minimum is None else change(self.minimum)
        return QuantizedTensor(change(self.codes), change(self.scale), minimum, self.bits, self.group)
